package overlay

// What a layer may hold. A layer beyond a limit is refused with
// errdefs.ErrInvalidArgument; all are far above what images in the wild have.
const (
	maxEntries    = 1 << 21  // entries of one tar
	maxDevices    = 1 << 12  // device nodes of one layer, whiteouts not counted
	maxPath       = 4096     // bytes of a name, of a link target, or of a path in the layer (PATH_MAX)
	maxName       = 255      // bytes of one component (NAME_MAX)
	maxLinks      = 40       // symbolic links on the way to one entry, as in the kernel
	maxRecord     = 8 << 20  // bytes of the headers of one entry, with PAX records and sparse maps
	maxAttributes = 256      // extended attributes of one entry
	maxAttribute  = 1 << 16  // bytes of one value (XATTR_SIZE_MAX)
	maxSparse     = 1 << 40  // bytes that the sparse files of one layer may stand for
	maxTrailer    = 64 << 20 // bytes behind the end of the archive
	maxNames      = 64 << 20 // bytes of the names of all entries together
)

// Processor time that extraction takes for one thing, in nanoseconds. The figures are rounded
// measurements on a server of 2020; only their proportions matter.
const (
	costLayer     = 1_000_000 // make, parse, sync and publish a layer, whatever it holds
	costEntry     = 20_000    // parse a header, make the file, set owner, mode and times
	costNode      = 40_000    // beyond costEntry: make and remove a directory, a whiteout or a device
	costAttribute = 5_000     // set an extended attribute
	costFragment  = 5_000     // write a fragment of a sparse file
	costStep      = 100       // look up one component of a path
	costHeader    = 15        // parse, encode and compress a byte of headers
	costRecord    = 30        // do so with a byte beyond the first plainHeaders of an entry: PAX records
	costContent   = 2         // decompress, hash, check and write a byte of the tar
)

// plainHeaders is what the headers of an ordinary entry take.
const plainHeaders = 3 * tarBlock

// The work of an image may grow with the bytes that were transferred for its layers. Legitimate
// layers stay below 100 ns a byte; an image of 10 MB may take ten seconds, whatever its compression.
const (
	workFloor   = 6_000_000_000 // nanoseconds that every image may take
	workPerByte = 400           // nanoseconds more for each transferred byte

	smallImage = 10_000_000 // bytes of the largest image that has no more than that
	slowRatio  = 20         // to which a layer in a slow format may be compressed, however large it is
)

// The memory for names and link targets may grow with the transferred bytes too. Entries of real
// layers take 50 bytes of a compressed tar or more.
const (
	keptFloor   = 32 << 20  // bytes that the layers of an image may need at a time
	keptPerByte = 2         // bytes more for each byte that was transferred for these layers
	maxKept     = 256 << 20 // bytes for any layer

	keptFile    = 96  // a name and its hash
	keptLink    = 192 // a symbolic link without its target
	keptDir     = 384 // a directory with its table of names
	keptImplied = 64  // a directory without an entry, until the layer is committed
)

// maxLookups bounds how many directories of the layers below one Commit opens to describe what its
// tars only imply. Ten seconds of processor time are the usual cost of so many.
const maxLookups = 1 << 22

// lookups counts the directories that one Commit opens in the layers below.
type lookups struct{ left int }

// take counts the lookup of a path of some depth.
func (l *lookups) take(depth int) error {
	if l == nil {
		return nil
	}
	if l.left -= 1 + depth/32; l.left < 0 {
		return invalid("the directories that the tars imply take too many lookups in the layers below")
	}
	return nil
}
