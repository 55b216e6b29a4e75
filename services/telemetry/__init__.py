"""What can be seen of a running service: metrics, traces, logs. Every object is passed by hand; none is global.

tracing   spans, and W3C's headers at each wire: OpenTelemetry's API only, its SDK where an exporter is asked for
metrics   what answers, engines and stores are counted by: one registry a process
logs      lines as text or JSON
"""
