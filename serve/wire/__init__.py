"""What goes over the wire: the bodies of requests and answers, as OpenAI's clients send and expect them."""
