"""RabbitMQ's LDAP backend: bind to log in, queries of the directory to authorise."""
