from services.client import Client, ClientError

with Client("127.0.0.1:50051", timeout_s=60) as client:
    report = "Report of the harbour keeper. Signed: A. Heron."
    answer = client.generate(report, question="Who signed it?", sla="interactive", max_tokens=20)
    print(answer.text, answer.recipe.name, f"{answer.timings.ttft_ms:.0f} ms", answer.sla_met)

    for token in client.stream(report, question="What else?", max_tokens=20, on_progress=print):
        print(token.text, end="")

    with client.session(sla="balanced", max_tokens=20) as chat:  # the report is prefilled once
        chat.ask(report, question="Who signed it?")
        other = chat.fork()
        print(chat.ask("And when?").usage.computed_tokens, other.ask("Why?").text)

    try:
        client.generate(report, ttft_ms=0.001, strict=True)
    except ClientError as error:  # Overloaded, Busy, NotFound, Unavailable ... are kinds of it
        print(error.status, error)
