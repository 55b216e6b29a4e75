"""What can be seen of a running service: metrics, traces, logs. Every object is passed by hand; none is global.

process   what one process tells of itself: its registry, and where its traces go
tracing   spans, and W3C's headers at each wire
metrics   what answers and stores are counted by; engine_metrics: engines; page: all of it, as Prometheus reads it
logs      lines as text or JSON
"""
