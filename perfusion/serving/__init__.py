"""An HTTP server that draws: OpenAI's images and A1111's `/sdapi/v1`. Needs the extra `serve`.

Starlette and no FastAPI: the bodies are other programs' dialects, with error objects of their own, so a generated
schema would describe what these clients do not send, and pydantic would be a compiled dependency for nothing.
"""
