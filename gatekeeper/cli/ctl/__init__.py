"""gatekeeperctl: rabbitmqctl's commands for a gate. ``table.py`` lists them, ``run.py`` is the
way of one call; a file beside them for each family of commands.

Source of all texts, exit codes and the choice of stdout or stderr: RabbitMQ 4.3.5's rabbitmqctl
(``deps/rabbitmq_cli``). Where this differs on purpose, the place says so.
"""
