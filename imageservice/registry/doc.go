// Package registry is a client of image registries. It finds out where a repository is served,
// authenticates, resolves a reference to the manifest for a platform, and transfers blobs. It knows
// nothing of images on disk.
//
// A [Client] is for the whole node. It holds the options and limits the transfers of all pulls. Its
// method Open returns a [Repository], the client of one repository for one pull:
//
//	client := registry.New(registry.Options{CertsDirs: []string{"/etc/mica/certs.d"}})
//	repo, err := client.Open(ref, registry.Auth{})
//	defer repo.Close()
//	manifest, err := repo.Resolve(ctx, platforms.Default())
//	config, image, err := repo.Config(ctx, manifest, platforms.Default())
//	err = repo.Blob(ctx, manifest.Layers[0], file, &received)
//
// # Hosts
//
// A repository is served by the registry that the reference names and by its mirrors. containerd's
// hosts.toml names them, in the order in which they are asked. A host that fails, or that sends
// something other than what it was asked for, is followed by the next one.
//
// # Invariants
//
//   - Content that a method returns or writes has the digest and size by which it was requested.
//   - A document is decoded only after its size and shape were checked against limits.
//   - Credentials, headers and client certificates go only to servers that the reference or
//     hosts.toml names. A token service gets credentials if it belongs to the server that named it.
//   - A server may redirect the node only to addresses at least as far from the node as the server
//     itself: a public registry cannot make the node ask a metadata service. The exceptions are
//     servers that hosts.toml lists, and private addresses whose server proves its name by TLS.
//   - Each step takes bounded time: a transfer below the minimum rate is ended and resumed.
//
// # Errors
//
// Errors have the classes of github.com/containerd/errdefs. Unavailable means that the same request
// may succeed later. Error texts contain no credentials: queries of URLs are left out.
package registry
