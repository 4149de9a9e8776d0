package overlay

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// kind is the type of the file that an unfinished layer has at a path.
type kind uint8

const (
	kindDir kind = iota
	kindSymlink
	kindWhiteout
	kindOther // files and device nodes
)

// node is one name of an unfinished layer. The tree of nodes has every file of the layer's
// directory, because the directory was empty at first and has no other writer. So paths are
// resolved in this tree, without system calls, and the kernel cannot follow a link of the layer.
//
// Many files share one node of kindOther.
type node struct {
	kind     kind
	hides    bool  // the same layer has a whiteout for the name, which hides the layers below
	implied  bool  // a directory that the tar has not listed
	depth    int32 // of a directory: components of its path, 0 for the root
	length   int32 // of a directory: bytes of its path
	base     string
	target   string // of a symbolic link
	parent   *node
	children map[string]*node
	times    *times // of a directory; set after the last write to it
}

func newDir(parent *node, base string) *node {
	n := &node{kind: kindDir, base: base, parent: parent}
	if parent != nil {
		n.depth, n.length = parent.depth+1, int32(parent.pathLength(base))
	}
	return n
}

// add adds a child. base must not be a substring of a longer string, which would stay in memory.
func (n *node) add(base string, child *node) {
	if n.children == nil {
		n.children = map[string]*node{}
	}
	n.children[base] = child
}

// pathLength returns the length of the path of a name in the directory.
func (n *node) pathLength(base string) int {
	if n.parent == nil {
		return len(base)
	}
	return int(n.length) + 1 + len(base)
}

// name returns the path of a directory, "." for the root.
func (n *node) name() string { return n.below(nil) }

// below returns the path of a directory relative to one above it; nil is the root.
func (n *node) below(above *node) string {
	var parts []string
	for ; n != above && n.parent != nil; n = n.parent {
		parts = append(parts, n.base)
	}
	if len(parts) == 0 {
		return "."
	}
	slices.Reverse(parts)
	return strings.Join(parts, "/")
}

func (n *node) path(base string) string {
	if n.parent == nil {
		return base
	}
	return n.name() + "/" + base
}

// place is the destination of an entry: a name in a directory. base is "." for the root.
type place struct {
	dir      *node
	base     string
	followed bool // a symbolic link of the layer was followed
}

func (p place) path() string { return p.dir.path(p.base) }

// cleanName makes the name of an entry relative to the root of the layer. An absolute name starts
// at that root; a name that leaves it is refused.
func cleanName(name string) (string, error) {
	if name == "" || strings.IndexByte(name, 0) >= 0 {
		return "", invalid("name is empty or holds a NUL")
	}
	if len(name) > maxPath {
		return "", invalid("name has %d bytes, the limit is %d", len(name), maxPath)
	}
	clean := path.Clean(name)
	if clean[0] == '/' {
		clean = clean[1:]
	}
	switch {
	case clean == "":
		return ".", nil
	case clean == ".." || strings.HasPrefix(clean, "../"):
		return "", invalid("name leaves the root of the layer")
	}
	return clean, nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// linkError returns the error for a hard link that could not be created. File systems limit the
// links of a file, ext4 to 65,000.
func linkError(target string, err error) error {
	if errors.Is(err, unix.EMLINK) {
		return invalid("link to %q: a file has more hard links than the file system's limit: %v", target, err)
	}
	return fmt.Errorf("link to %q: %w", target, err)
}

// walker resolves one path as if the layer were the root directory. "..", absolute link targets and
// links out of the layer end at that root.
type walker struct {
	root     *node
	makeDir  func(parent *node, base string) (*node, error) // nil: a missing name is an error
	budget   *budget
	followed bool
	links    int
}

// directory returns the directory at a clean relative path.
func (w *walker) directory(p string) (*node, error) {
	at := w.root
	todo := []string{p} // stack of paths, the next one last
	for len(todo) > 0 {
		last := len(todo) - 1
		name, rest, more := strings.Cut(todo[last], "/")
		if todo[last] = rest; !more {
			todo = todo[:last]
		}
		if err := w.budget.step(1); err != nil {
			return nil, err
		}
		switch name {
		case "", ".":
			continue
		case "..":
			if at.parent != nil {
				at = at.parent
			}
			continue
		}
		next, err := w.child(at, name)
		if err != nil {
			return nil, err
		}
		if next.kind != kindSymlink {
			at = next
			continue
		}
		w.followed = true
		if w.links++; w.links > maxLinks {
			return nil, invalid("too many symbolic links")
		}
		if strings.HasPrefix(next.target, "/") {
			at = w.root
		}
		todo = append(todo, next.target)
	}
	return at, nil
}

// child returns a directory or a symbolic link.
func (w *walker) child(at *node, name string) (*node, error) {
	c := at.children[name]
	switch {
	case c != nil && (c.kind == kindDir || c.kind == kindSymlink):
		return c, nil
	case c != nil && c.kind == kindOther:
		return nil, invalid("%q is not a directory", at.path(name))
	case w.makeDir == nil:
		return nil, invalid("directory %q is not in this layer", at.path(name))
	}
	return w.makeDir(at, name)
}

// impliedDir is a directory that a tar has not listed, or an ancestor of one.
type impliedDir struct {
	base     string
	implied  bool
	children []impliedDir
}

// impliedBelow returns the implied directories in the tree of n, with their ancestors.
func impliedBelow(n *node) (d impliedDir, any bool) {
	d = impliedDir{base: n.base, implied: n.implied}
	for _, c := range n.children {
		if c.kind != kindDir {
			continue
		}
		if below, ok := impliedBelow(c); ok {
			d.children = append(d.children, below)
		}
	}
	return d, d.implied || len(d.children) > 0
}

// kept returns the memory of the directories, in bytes.
func (d impliedDir) kept() int64 {
	kept := int64(keptImplied + len(d.base))
	for _, c := range d.children {
		kept += c.kept()
	}
	return kept
}
