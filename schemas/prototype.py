"""Where each setting of the research prototype is now, for migration."""

from __future__ import annotations

PROTOTYPE: dict[str, tuple[str, str]] = {
    "rh_host": ("host agent: bus.url", "agents connect to the bus; nothing connects to a host"),
    "rh_port": ("host agent: bus.url", "no port is open on a host"),
    "container_host": ("application agent: bus.url, host", "nothing connects to a container; `host` is an id"),
    "container_port": ("application agent: bus.url", "no port is open in a container"),
    "measurement_list": ("host agent: measurement_list", "the binary list, not the ASCII list"),
    "remotehostHashKeyLocation": ("host agent: volumes", "folders, by index; the file's name is the session's"),
    "applicationHashKeyLocation": ("application agent: volume", "a folder; the file's name is the session's"),
    "nginx_pub_crt": ("measured settings: gateway_ca, gateway_name", "the CA and the name, not one certificate"),
    "nginx_client_crts": (
        "gateway worker: nginx_socket",
        "admissions go into nginx's shared memory; docs/gateway.md has the variant with a file and reloads",
    ),
    "server_crt": ("nginx: certificate", "for the bus: `tls` in nats-server's own configuration"),
    "server_key": ("nginx: key", "for the bus: `tls` in nats-server's own configuration"),
    "spid": ("manager: attestation.ias.spid", 'legacy attestation (EPID), service = "ias"; docs/sgx.md'),
    "ias_crt": ("manager: attestation.ias.ias_crt", "for DCAP: attestation.root; docs/sgx.md"),
    "ias_url": ("manager: attestation.ias.ias_url", "for DCAP: attestation.pccs_url; docs/sgx.md"),
}
"""By the prototype's name: where it is set now, and the difference."""
