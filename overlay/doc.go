// Package overlay is the layer store of a node: read-only image layers, and the writable layers of
// containers, mounted by the kernel's overlay file system.
//
// It knows layers by chain ID and writable layers by the container's ID. It does not know images,
// references, registries or compression: a layer comes in as an uncompressed tar stream and leaves
// as the same stream, bit for bit.
//
// # On disk
//
// The layout is that of dockerd's overlay2 driver, below one data root, so that a store can be
// adopted in place from dockerd and read by it:
//
//	overlay2/<cache-id>/diff       the files of one layer
//	overlay2/<cache-id>/link       its short name
//	overlay2/<cache-id>/lower      "l/A:l/B:…", the layers below, nearest first; absent in a base
//	overlay2/<cache-id>/work       overlay's work directory; absent in a base
//	overlay2/<cache-id>/committed  empty: the directory will never be an upper one
//	overlay2/<mount-id>-init       the init layer of a container, as a layer
//	overlay2/<mount-id>            the writable layer; merged is its mount point
//	overlay2/l/<short name>        a link to ../<cache-id>/diff, for short mount options
//	image/overlay2/layerdb/sha256/<chain ID>/{cache-id,diff,parent,size,tar-split.json.gz}
//	image/overlay2/layerdb/mounts/<ID>/{mount-id,init-id,parent}
//	image/overlay2/layerdb/tmp/write-set-*   entries being made or taken apart
//
// # Invariants
//
// An entry of layerdb is what makes a layer or a writable layer exist. It appears and disappears by
// one rename, a layer's only after the files of the layer are on stable storage. So a directory of
// overlay2 that no entry names is garbage, and Open removes it, if its name is one that dockerd or
// this package would have given and if every entry could be read. Nothing else is ever removed:
// what is not understood is left alone and reported by Check.
//
// A layer's parent is there as long as the layer is. One process at a time has a store open: it
// holds a flock on the directory overlay2.
//
// A layer is extracted without the layers below it, into a [Draft]. What a tar only implies (parent
// directories that it does not list) is taken from the layers below when the draft is committed.
//
// What a container has changed of its image can be told as a tar and done to another writable layer
// ([Store.Changes], [Store.ApplyChanges]): the form in which checkpoints of containers have it.
//
// The package needs Linux 5.8, root, and /proc.
package overlay
