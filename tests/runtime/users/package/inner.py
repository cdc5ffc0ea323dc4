def work(payload):
    return "from a package"
