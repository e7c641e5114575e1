"""A second client: langchain-openai, unmodified."""

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from reference_model import Reference
from served_app import Served

MESSAGES = [SystemMessage("Be brief."), HumanMessage("The quick brown fox")]


@pytest.fixture(scope="module")
def chat(served: Served) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{served.url}/v1",
        api_key=served.key,  # type: ignore[arg-type]
        model=served.model,
        temperature=0,
        max_completion_tokens=10,
        max_retries=0,
    )


@pytest.fixture(scope="module")
def expected(served: Served) -> tuple[int, str]:
    """Tokens of the prompt, and the answer."""
    reference = Reference.load(served.folder)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The quick brown fox"}]
    ids = reference.chat_ids(messages)
    return len(ids), reference.text(reference.greedy(ids, 10))


def test_an_answer_is_the_plain_model_s_and_usage_is_read(chat: ChatOpenAI, expected: tuple[int, str]) -> None:
    answer = chat.invoke(MESSAGES)
    assert answer.content == expected[1]
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["input_tokens"] == expected[0]


def test_a_stream_is_the_same_answer(chat: ChatOpenAI, expected: tuple[int, str]) -> None:
    chunks = list(chat.stream(MESSAGES))
    assert "".join(str(chunk.content) for chunk in chunks) == expected[1]


def test_a_batch_is_answered_in_order(chat: ChatOpenAI) -> None:
    questions = [f"word {i}" for i in range(4)]
    assert [each.content for each in chat.batch(questions)] == [chat.invoke(each).content for each in questions]
