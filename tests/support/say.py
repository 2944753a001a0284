"""The smallest client: ``python -m tests.support.say publish|read URL QUEUE [TEXT]``.

For the lines that `make run` prints. A refusal is one line on stderr and exit status 1.
"""

from __future__ import annotations

import sys

import pika
import pika.exceptions

USAGE = "usage: python -m tests.support.say publish URL QUEUE TEXT | read URL QUEUE"


def publish(
    channel: pika.adapters.blocking_connection.BlockingChannel, queue: str, text: str
) -> str:
    channel.queue_declare(queue, durable=True)
    channel.confirm_delivery()
    channel.basic_publish("", queue, text.encode())
    return f"published to {queue}"


def read(channel: pika.adapters.blocking_connection.BlockingChannel, queue: str) -> str:
    method, _properties, body = channel.basic_get(queue, auto_ack=True)
    return f"{queue} is empty" if method is None else f"read from {queue}: {body.decode()}"


def main(arguments: list[str]) -> int:
    match arguments:
        case ["publish", url, queue, text]:
            action = lambda channel: publish(channel, queue, text)  # noqa: E731
        case ["read", url, queue]:
            action = lambda channel: read(channel, queue)  # noqa: E731
        case _:
            print(USAGE, file=sys.stderr)
            return 2
    try:
        with pika.BlockingConnection(pika.URLParameters(url)) as connection:
            print(action(connection.channel()))
    except (pika.exceptions.ChannelClosedByBroker, pika.exceptions.ConnectionClosedByBroker) as e:
        print(f"refused: {e.reply_code} {e.reply_text}", file=sys.stderr)
        return 1
    except pika.exceptions.AMQPError as error:
        print(f"failed: {type(error).__name__} {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
