"""RabbitMQ's OAuth 2 backend: a JSON Web Token is the password, its scopes are the permissions.

``scopes``, ``claims`` and ``token`` are pure; ``keys`` and ``fetch`` know the identity
providers; ``backend`` puts them behind the engine's ports.
"""
