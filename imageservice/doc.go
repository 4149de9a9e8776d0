// Package imageservice keeps the images of a node: it pulls them from registries, lists, finds and removes them, and answers the ImageService
// of the CRI. Each RPC is in the file of its name.
//
// It is not the layer store: package overlay owns what is inside a layer, this package owns what makes layers an image. It knows nothing about
// containers; an image may be removed while containers use it, because a writable layer keeps its parents alive.
//
// # Invariants
//
//   - An image's ID is the sha256 of its configuration, whose bytes are kept exactly as the registry served them.
//   - What is on disk is complete: layers are committed before the configuration is written, and the configuration before repositories.json names it.
//     A crash in between leaves layers, which the next Open removes, or an unnamed image, never a name without content.
//   - Every byte that came from a registry was checked against the digest and size by which it was asked for, every layer also
//     against the diff ID in the configuration.
//   - A document of a registry or another engine is decoded only after it was found to be within limits.go. In memory is of each image
//     what lists need; the configuration is read from the disk when someone asks for it.
//   - An image over the limits that another engine left is neither listed nor found, but keeps its files and layers until someone removes it by its ID.
//   - An image one of whose layers is missing is as good as absent: it is neither listed nor found, and pulling it again repairs it.
//
// # On-disk form
//
// That of dockerd's overlay2 image store, below the data root:
//
//	image/overlay2/repositories.json                                {"Repositories":{"<name>":{"<reference>":"<image ID>"}}}, familiar names
//	image/overlay2/imagedb/content/sha256/<hex>                     configuration of the image whose ID is sha256:<hex>
//	image/overlay2/imagedb/metadata/sha256/<hex>/lastUpdated        time of the last Tag, RFC 3339 with nanoseconds; absent after a mere pull
//	image/overlay2/imagedb/metadata/sha256/<hex>/parent             ID of the image that it was built on; read, written by builders only
//	image/overlay2/distribution/diffid-by-digest/sha256/<hex>       diff ID of a layer blob
//	image/overlay2/distribution/v2metadata-by-diffid/sha256/<hex>   JSON array of {Digest, SourceRepository, HMAC}, at most 50
//
// and two files of its own, caches that may be deleted: cri/image-usage.json, the disk usage of each layer, and cri/container-usage.json, that of
// all writable layers together.
//
// # Concurrency
//
// All methods may be called at any time from any goroutine. Pulls of the same reference with the same credentials are one pull; pulls that share
// a layer fetch it once, unless another registry sends it slowly. A pull outlives its callers: when all have given up it goes on under its own deadline, and
// the next caller joins it.
package imageservice
