"""The examples of RabbitMQ's guide on access control, letter by letter.

Source: rabbitmq.com/docs/access-control, "Combining Backends" and "Mechanism Configuration".
"""

INTERNAL = """\
# rabbitmq.conf
# 1 here is a backend name. It can be anything.
# Since we only really care about backend
# ordering, we use numbers throughout this guide.
# "internal" is an alias for rabbit_auth_backend_internal
auth_backends.1 = internal
"""
OAUTH2 = """\
# note that the module name begins with a "rabbit_", not "rabbitmq_", like in the name
# of the plugin
auth_backends.1 = rabbit_auth_backend_oauth2
"""
LDAP = """\
auth_backends.1 = ldap
"""
LDAP_THEN_INTERNAL = """\
auth_backends.1 = ldap
auth_backends.2 = internal
"""
LDAP_THEN_HTTP = """\
# rabbitmq.conf
auth_backends.1 = ldap
# uses module name instead of a short alias, "http"
auth_backends.2 = rabbit_auth_backend_http

# See HTTP backend docs for details
auth_http.user_path = http://my-authenticator-app/auth/user
auth_http.vhost_path = http://my-authenticator-app/auth/vhost
auth_http.resource_path = http://my-authenticator-app/auth/resource
auth_http.topic_path = http://my-authenticator-app/auth/topic
"""
INTERNAL_WITH_IP_RANGE = """\
# rabbitmq.conf
auth_backends.1.authn = internal
# uses module name because this backend is from a 3rd party
auth_backends.1.authz = rabbit_auth_backend_ip_range
"""
LDAP_WITH_INTERNAL = """\
# rabbitmq.conf
auth_backends.1.authn = ldap
auth_backends.1.authz = internal
"""
LDAP_WITH_INTERNAL_THEN_INTERNAL = """\
# rabbitmq.conf
auth_backends.1.authn = ldap
auth_backends.1.authz = internal
auth_backends.2 = internal
"""

# The same in an advanced.config, as earlier versions of the guide have them.
TERMS = {
    INTERNAL: "[{rabbit, [{auth_backends, [rabbit_auth_backend_internal]}]}].",
    OAUTH2: "[{rabbit, [{auth_backends, [rabbit_auth_backend_oauth2]}]}].",
    LDAP: "[{rabbit, [{auth_backends, [rabbit_auth_backend_ldap]}]}].",
    LDAP_THEN_INTERNAL: """\
[{rabbit, [
  {auth_backends, [rabbit_auth_backend_ldap, rabbit_auth_backend_internal]}
]}].
""",
    INTERNAL_WITH_IP_RANGE: """\
[{rabbit, [
  {auth_backends, [{rabbit_auth_backend_internal, rabbit_auth_backend_ip_range}]}
]}].
""",
    LDAP_WITH_INTERNAL: """\
[{rabbit, [
  {auth_backends, [{rabbit_auth_backend_ldap, rabbit_auth_backend_internal}]}
]}].
""",
    LDAP_WITH_INTERNAL_THEN_INTERNAL: """\
[{rabbit, [
  {auth_backends, [{rabbit_auth_backend_ldap, rabbit_auth_backend_internal},
                   rabbit_auth_backend_internal]}
]}].
""",
}
MECHANISMS = "[{rabbit, [{auth_mechanisms, ['PLAIN', 'AMQPLAIN']}]}]."
LOOPBACK_USERS = """\
# allowing remote connections for default user is highly discouraged
# as it dramatically decreases the security of the system. Delete the default user
# instead and create a new one with generated secure credentials, or use JWT tokens,
# or x.509 certificates for clients to authenticate themselves
loopback_users = none
"""
DEFAULT_USER = """\
# default is "guest", and its access is limited to localhost only.
# See ./access-control#default-state
default_user = a-user
# default is "guest"
default_pass = 768a852ed69ce916fa7faa278c962de3e4275e5f
"""
