// Package testregistry is an OCI distribution registry inside a test process, or inside a
// development node that serves images to itself.
//
// It implements the parts of the OCI distribution specification v1.1 that clients need to pull and
// push: blobs (GET, HEAD, Range, monolithic and chunked uploads, cross-repository mounts),
// manifests (GET, HEAD, PUT, DELETE by tag or digest) and tag lists. It can require basic or bearer
// authentication, and it injects faults: see [Fault]. It records every request, so that a test can
// check which requests were made: see [Registry.Requests].
//
// It is not a production registry: all repositories share their blobs, nothing is
// garbage-collected, a push is held in memory until it is complete, and there is no TLS (wrap the
// registry in an [net/http/httptest] server for that).
//
// On-disk form, when [Options].Dir is set (the same directory can be opened again later):
//
//	<dir>/blobs/sha256/<hex>                            blob and manifest bytes
//	<dir>/repositories/<name>/_manifests/<hex>          media type of a manifest of that repository
//	<dir>/repositories/<name>/_tags/<tag>               digest that the tag points to
//
// A Registry may be used concurrently.
package testregistry
