package overlay

// What a layer may hold. A layer beyond a limit is refused with
// errdefs.ErrInvalidArgument; all are far above what images in the wild have.
const (
	maxEntries    = 1 << 21  // entries of one tar
	maxDevices    = 1 << 12  // device nodes of one layer, whiteouts not counted
	maxPath       = 4096     // bytes of a name or a link target (PATH_MAX)
	maxName       = 255      // bytes of one component (NAME_MAX)
	maxLinks      = 40       // symbolic links on the way to one entry, as in the kernel
	maxRecord     = 8 << 20  // bytes of the headers of one entry, with PAX records and sparse maps
	maxAttributes = 256      // extended attributes of one entry
	maxAttribute  = 1 << 16  // bytes of one value (XATTR_SIZE_MAX)
	maxSparse     = 1 << 40  // bytes that the sparse files of one layer may stand for
	maxTrailer    = 64 << 20 // bytes behind the end of the archive
	maxNames      = 64 << 20 // bytes of the names of all entries together
)
