"""A mail server: smtp.py PORT FOLDER CERTIFICATE KEY USER PASSWORD.

Writes each mail to FOLDER/N.eml. The server requires STARTTLS and a login. While FOLDER/answer exists, the server rejects
mails with its content.
"""

import itertools
import pathlib
import signal
import ssl
import sys

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

port, folder, certificate, key, user, password = sys.argv[1:]
folder = pathlib.Path(folder)


class Box:
    def __init__(self):
        self.numbers = itertools.count()

    async def handle_DATA(self, server, session, envelope):
        answer = folder / "answer"
        if answer.exists():
            return answer.read_text()
        new = folder / "new"
        new.write_bytes(("To: " + ",".join(envelope.rcpt_tos) + "\r\n").encode() + envelope.content)
        new.rename(folder / f"{next(self.numbers)}.eml")
        return "250 taken"


def check(server, session, envelope, mechanism, data):
    known = isinstance(data, LoginPassword) and (data.login, data.password) == (user.encode(), password.encode())
    return AuthResult(success=known, handled=False)


tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(certificate, key)
Controller(
    Box(),
    hostname="127.0.0.1",
    port=int(port),
    tls_context=tls,
    require_starttls=True,
    auth_required=True,
    authenticator=check,
).start()
(folder / "ready").touch()
signal.pause()
