"""Users, vhosts, permissions and limits: what RabbitMQ calls its internal database."""
