"""`/ops` and the files it is made of: one document, its scripts and styles, all from here, none of them inline.

The charts are uPlot's, kept beside its licence. Files are read once; what is not among them is not found, whatever its name.
"""

from importlib.resources import files

from fastapi import APIRouter, Response

from policies.errors import Rejected
from services.control.sessions import policy_for

PAGE = "ops.html"
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "txt": "text/plain; charset=utf-8",
}


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter()
    found = {one.name: one.read_bytes() for one in (files("services") / "control" / "page").iterdir() if one.is_file()}
    policy = policy_for(found[PAGE].decode())

    def answer(name: str) -> Response:
        headers = {"cache-control": "no-cache", "content-security-policy": policy}
        return Response(found[name], media_type=TYPES[name.rpartition(".")[2]], headers=headers)

    @routes.get("/ops", include_in_schema=False)
    def ops() -> Response:
        return answer(PAGE)

    @routes.get("/ops/page/{name}", include_in_schema=False)
    def part(name: str) -> Response:
        if name not in found:
            raise Rejected(f"No file {name!r}", at="$.name", code="unknown_file", status=404)
        return answer(name)

    return routes
