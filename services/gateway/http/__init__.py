"""The gateway over HTTP: OpenAI's API for prompts, and this service's own for recipes, plans and sessions.

body      bytes → JSON, within bounds
schema    JSON → prompt, sampling; chat and completions have their own fields
turn      runs it: one JSON document, or server-sent events
chat, completions    what comes out, in OpenAI's words
errors    the one table from errors to HTTP statuses
"""
