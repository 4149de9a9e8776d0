// Package testregistry is an OCI distribution registry that runs inside a test process, or inside a development node that serves images to itself.
//
// It answers the parts of the OCI distribution specification v1.1 that a client needs to pull and push: blobs (GET, HEAD, Range, monolithic
// and chunked uploads, cross-repository mounts), manifests (GET, HEAD, PUT, DELETE by tag or digest) and tag lists. It can demand basic
// or bearer authentication, and it misbehaves on request: see [Fault]. Every request is recorded, so that a test can assert
// what was, and what was not, asked for: see [Registry.Requests].
//
// It is not a production registry: blobs are shared by all repositories, nothing is ever collected, pushes are held in memory until they are
// complete, and there is no TLS (wrap it in an [net/http/httptest] server for that).
//
// On-disk form, when [Options].Dir is set (the same directory can be opened again later):
//
//	<dir>/blobs/sha256/<hex>                            blob and manifest bytes
//	<dir>/repositories/<name>/_manifests/<hex>          media type of a manifest of that repository
//	<dir>/repositories/<name>/_tags/<tag>               digest that the tag points to
//
// A Registry is safe for concurrent use.
package testregistry
