"""What every refusal of the daemon must be like, read from its own OpenAPI document (x-errors) and not from its code."""
import re

import schemathesis

LISTED = re.compile(r"`(\w+)`")


def value_of(response, name):
    return next(iter(response.headers.get(name, [])), None)


@schemathesis.check
def refusal_is_documented(ctx, response, case):
    if response.status_code < 400 or response.request.method == "HEAD":
        return
    document = case.operation.schema.raw_schema
    problem = response.json()
    code, row = problem["code"], document["x-errors"].get(problem["code"])
    assert row is not None, f"{code} is not in x-errors"
    assert problem["message"].strip(), "the refusal says nothing"
    advice = value_of(response, "x-should-retry")
    pause = value_of(response, "retry-after")
    if row["retry"] == "never":
        assert advice == "false", f"{code} will be the same next time, but x-should-retry is {advice}"
        assert pause is None, f"{code} will be the same next time, but has retry-after"
    elif row["retry"] == "later":
        assert pause is not None and pause.isdigit(), f"{code} may do better later, but has no retry-after"
        assert advice != "false", f"{code} may do better later, but x-should-retry is false"
    if response.status_code >= 500:
        assert (response.status_code, code) != (500, "internal_error"), "a fault of the daemon"
    if response.status_code in (405, 413, 415, 431):
        return
    answers = case.operation.definition.raw["responses"]
    listed = LISTED.findall(answers.get(str(response.status_code), {}).get("description", ""))
    assert code in listed, f"{code} is not listed for {response.status_code}: {', '.join(listed)}"
