"""Administration: RabbitMQ's commands and HTTP API on the gate's own users."""
