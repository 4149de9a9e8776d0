// Package decompress decompresses streams whose format and memory others decide: layers from
// registries, and checkpoint archives.
//
// The first bytes of a stream determine its format, not its media type, because media types in use
// are wrong. A [Pool] is for layers: gzip, zstd, xz, bzip2 or none, with bounded memory for all
// streams together. [NewReader] is for one stream of gzip, zstd or none.
//
// # Memory
//
// The header of a zstd or xz stream asks for a window, which is the memory that its decoder needs.
// Streams with a window of at most 8 MiB, which builders of images use, are not limited. The others
// share 64 MiB. A stream waits until there is room, and a stream that needs more than 64 MiB waits
// until it is the only one.
package decompress
