# Varnish in front of the Apache of the same node: docs/guide/caches.md. Goes to /etc/varnish/syncd.vcl.
vcl 4.1;

backend default {
    .host = "127.0.0.1";
    .port = "8080";
}

sub vcl_backend_response {
    # For varnish-ban, whose bans are tested in the background, without a request at hand.
    set beresp.http.x-syncd-url = bereq.url;
}

sub vcl_deliver {
    unset resp.http.x-syncd-url;
}
