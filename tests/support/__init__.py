"""The test harness: real RabbitMQ nodes, the real gate, a raw AMQP client. Nothing shared."""
