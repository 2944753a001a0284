"""Configuration: RabbitMQ's file format and key names, read once at the start."""
