"""Random sessions against RabbitMQ itself (A) and against the gate before a RabbitMQ (B).

A enforces the definitions natively, with the real users; behind B's gate the broker knows only
the service account. Every reply (class, method, all arguments, reply code and text, content) and
the broker's state afterwards must be the same.

The installed broker is 3.10.8 and the gate answers as 4.3.5 does. What differs between the two
is not dropped from the comparison but *predicted*: :mod:`.oracle` is a small model of the
permission rules, written from the documented semantics and independent of the package, and
:mod:`.versions` is the explicit list of differences, each with its prediction.

    scenario     users, permissions, names; the definitions of both sides
    operations   what a session is made of
    generator    makes sessions from a seed
    oracle       which checks an operation needs, in order, and whether they pass
    versions     the list of known differences
    side         runs one session against one side, step by step
    names        makes names that brokers invent comparable
    broker_state what a broker holds after a session
    campaign     both sides in lockstep, the comparison, the report
    parts        starts the nodes and the gate
"""
