package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"
)

// findings is what Open finds on disk.
type findings struct {
	directories map[string]bool // names in overlay2
	claimed     map[string]bool // names that entries of layerdb contain
	unreadable  bool            // an entry exists whose directories are unknown
}

// load reads layerdb into s.layers, s.damaged and s.rws.
func (s *Store) load(ctx context.Context) (*findings, error) {
	f := &findings{directories: map[string]bool{}, claimed: map[string]bool{}}
	names, err := readNames(s.paths.overlay())
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		f.directories[name] = true
	}
	if err := s.loadLayers(ctx, f); err != nil {
		return nil, err
	}
	return f, s.loadWritables(ctx, f)
}

func (s *Store) loadLayers(ctx context.Context, f *findings) error {
	names, err := readNames(s.paths.layers())
	if err != nil {
		return err
	}
	log := klog.FromContext(ctx)
	for _, name := range names {
		if !s.names.hex.MatchString(name) {
			// The name is dockerd's "<id>-<n>-removing", or unknown: keep its directory.
			f.claim(readString(filepath.Join(s.paths.layers(), name, cacheIDName)))
			continue
		}
		chain := digest.NewDigestFromEncoded(digest.SHA256, name)
		l, err := s.readLayer(chain)
		f.claim(l.CacheID, nil)
		switch {
		case err != nil:
			f.unreadable = f.unreadable || l.CacheID == ""
		case !f.directories[l.CacheID]:
			err = fmt.Errorf("directory overlay2/%s is missing", l.CacheID)
		default:
			s.layers[chain] = l
			continue
		}
		log.Info("Layer is damaged, a new pull replaces it", "layer", chain, "reason", err.Error())
		s.damaged[chain] = l
	}
	s.dropParentless(log)
	return nil
}

// dropParentless moves layers with an unusable parent to the damaged ones.
func (s *Store) dropParentless(log klog.Logger) {
	for again := true; again; {
		again = false
		for id, l := range s.layers {
			if _, ok := s.layers[l.Parent]; l.Parent == "" || ok {
				continue
			}
			log.Info("Layer is damaged, a new pull replaces it", "layer", id, "reason", "parent is missing", "parent", l.Parent)
			s.damaged[id] = l
			delete(s.layers, id)
			again = true
		}
	}
}

func (f *findings) claim(id string, err error) {
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.unreadable = true
	}
	if id != "" {
		f.claimed[id] = true
	}
}

// readLayer reads one entry. After an error, the fields that it could read are set.
func (s *Store) readLayer(chain digest.Digest) (Layer, error) {
	dir := s.paths.layer(chain)
	cacheID, cerr := readString(filepath.Join(dir, cacheIDName))
	if cerr == nil && !isName(cacheID) {
		cacheID, cerr = "", fmt.Errorf("bad cache-id %q", cacheID)
	}
	parent, perr := readString(filepath.Join(dir, parentName))
	if errors.Is(perr, fs.ErrNotExist) {
		perr = nil
	}
	diff, derr := readString(filepath.Join(dir, diffIDName))
	l := Layer{ID: chain, Parent: digest.Digest(parent), DiffID: digest.Digest(diff), CacheID: cacheID}
	if err := errors.Join(cerr, perr, derr); err != nil {
		return l, err
	}
	if got := chainID(l.Parent, l.DiffID); got != chain {
		return l, fmt.Errorf("parent and diff make the chain ID %s", got)
	}
	size, err := readString(filepath.Join(dir, sizeName))
	if err != nil {
		return l, err
	}
	if l.Size, err = strconv.ParseInt(size, 10, 64); err != nil {
		return l, fmt.Errorf("bad size %q", size)
	}
	return l, nil
}

// isName reports whether s can be the name of a directory in overlay2.
func isName(s string) bool {
	return s != "" && s != "." && s != ".." && s != linksName && !strings.ContainsAny(s, "/\x00")
}

func (s *Store) loadWritables(ctx context.Context, f *findings) error {
	names, err := readNames(s.paths.mounts())
	if err != nil {
		return err
	}
	for _, name := range names {
		rw, err := s.readWritable(name)
		f.claim(rw.MountID, nil)
		f.claim(rw.InitID, nil)
		if err != nil {
			// The next Remove of the ID removes the entry. Until then no directory is removed,
			// because any could belong to it.
			klog.FromContext(ctx).Info("Writable layer is damaged", "id", name, "reason", err.Error())
			f.unreadable = true
			continue
		}
		s.rws[name] = &writable{RW: rw}
	}
	return nil
}

func (s *Store) readWritable(id string) (RW, error) {
	dir := s.paths.mount(id)
	rw := RW{ID: id}
	for _, field := range []struct {
		name     string
		to       *string
		optional bool
	}{
		{mountIDName, &rw.MountID, false},
		{initIDName, &rw.InitID, true},
		{parentName, (*string)(&rw.Parent), true},
	} {
		v, err := readString(filepath.Join(dir, field.name))
		if err != nil && (!field.optional || !errors.Is(err, fs.ErrNotExist)) {
			return rw, err
		}
		if strings.Contains(v, "/") || (v == "" && !field.optional) {
			return rw, fmt.Errorf("bad %s %q", field.name, v)
		}
		*field.to = v
	}
	return rw, nil
}

// writeLayer writes the files of an entry to a write set that already has the tar-split file.
func (s *Store) writeLayer(l Layer) error {
	dir := s.paths.writeSet(l.CacheID)
	files := map[string]string{
		cacheIDName: l.CacheID, diffIDName: l.DiffID.String(), sizeName: strconv.FormatInt(l.Size, 10),
	}
	if l.Parent != "" {
		files[parentName] = l.Parent.String()
	}
	return writeFiles(dir, files)
}

func writeFiles(dir string, files map[string]string) error {
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// maxField is the maximum size of a file of an entry, in bytes. The largest contains the links to
// 500 lower directories.
const maxField = 64 << 10

func readString(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxField+1))
	if err == nil && len(b) > maxField {
		err = fmt.Errorf("read %s: more than %d bytes", path, maxField)
	}
	return strings.TrimSpace(string(b)), err
}

// readNames lists a directory in any order, without a stat of each name.
func readNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	return d.Readdirnames(-1)
}
