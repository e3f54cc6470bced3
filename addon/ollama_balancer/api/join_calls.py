"""The calls by which hosts join."""

from agent_reporter.wire import JoinRequest

from ..gateway.access import OPERATE
from . import join_models
from .call import Answer, Call, error
from .paths import JOIN, JOIN_CODES, JOIN_PAGE, JOIN_SCRIPTS

NO_WHEEL = {
    400: error("The Host header is no name or address, as it must stand in the script."),
    503: error("The reporter is not installed as a package on the balancer's machine."),
}
SCRIPT = ("text/plain",)

JOIN_CALLS = (
    Call(
        "GET",
        JOIN_PAGE,
        "join_page",
        "How a host joins: for browsers a page, for others the script for Linux and macOS",
        {
            200: Answer("The page or the script.", SCRIPT, {"Vary": "`Accept`, `Host`."}, ("text/html",)),
            **NO_WHEEL,
        },
    ),
    Call(
        "GET",
        JOIN_SCRIPTS[0],
        "join_script",
        "The script by which a host with Linux or macOS joins",
        {200: Answer("The script.", SCRIPT), **NO_WHEEL},
    ),
    Call(
        "GET",
        JOIN_SCRIPTS[1],
        "join_powershell",
        "The script by which a host with Windows joins",
        {200: Answer("The script.", SCRIPT), **NO_WHEEL},
    ),
    Call(
        "GET",
        JOIN_PAGE + "/{file}",
        "reporter_wheel",
        "The balancer's own reporter, as the scripts name it",
        {
            200: Answer("A wheel.", ("application/zip",)),
            404: error("The balancer serves no such file."),
            503: NO_WHEEL[503],
        },
    ),
    Call(
        "POST",
        JOIN,
        "join",
        "Join by a code, which is the bearer token; a host that has joined presents its key, and gets its name",
        {
            200: Answer("The key is that of a host that has joined.", join_models.JoinedHost),
            201: Answer("The host has joined, and this is its key, which is shown only now.", join_models.JoinedHost),
            401: error("The code is not valid.", WWW_Authenticate="`Bearer`."),
            409: error("Another host has joined under that name."),
            503: error("No key can be checked now, or there is no memory left.", Retry_After="Seconds."),
            429: error("Too many wrong codes from this address.", Retry_After="Seconds."),
        },
        body=JoinRequest,
    ),
    Call(
        "POST",
        JOIN_CODES,
        "make_join_code",
        "Make a join code, which lets one host join",
        {
            201: Answer("The code, which is shown only now, and what to run on the host.", join_models.NewJoinCode),
            409: error("Too many codes are open."),
        },
        body=join_models.MakeJoinCode,
        body_required=False,
        rights=OPERATE,
        always=True,
    ),
)
