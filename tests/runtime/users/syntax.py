def work(payload):
    return (
