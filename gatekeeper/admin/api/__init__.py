"""RabbitMQ's management HTTP API on the gate's own users, without a word of HTTP's wire.

``table`` is the map: every path, its methods, who may use them and the handler. ``dispatch``
takes a request through it in RabbitMQ's (Cowboy's) order and answers; ``access`` knows who may do
what, ``call`` what handlers see and say, ``shape`` how lists are cut, sorted and paged. The
handlers are one module a family. ``gatekeeper/admin/http.py`` serves it with aiohttp.

Source: deps/rabbitmq_management/src of RabbitMQ 4.3.5.
"""
