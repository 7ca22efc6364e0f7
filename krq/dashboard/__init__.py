"""``krq web``: one small page over a JSON API, live by server-sent events, with metrics and probes. Needs ``krq[web]``."""
