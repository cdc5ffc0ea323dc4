"""What transports share whose service is asked for messages and keeps for a time what it hands out, such as SQS and Pub/Sub.

Nothing is held open between the two: each message is taken, extended and deleted by requests, of which many fit into one.
"""
