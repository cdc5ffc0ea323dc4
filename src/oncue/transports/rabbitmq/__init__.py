"""Queues in a RabbitMQ server, which any number of machines may share."""
