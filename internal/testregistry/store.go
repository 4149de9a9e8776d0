package testregistry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/micarun/mica/internal/atomicfile"
)

// blob is an open blob. Its Seek method serves ranges.
type blob interface {
	io.ReadSeekCloser
}

// store keeps the objects. If an object is missing, its methods return fs.ErrNotExist.
type store interface {
	putBlob(src io.Reader) (digest.Digest, error)
	openBlob(d digest.Digest) (blob, error)
	putManifest(repo string, d digest.Digest, mediaType string) error
	manifestType(repo string, d digest.Digest) (string, error)
	deleteManifest(repo string, d digest.Digest) error
	putTag(repo, tag string, d digest.Digest) error
	tag(repo, tag string) (digest.Digest, error)
	tags(repo string) ([]string, error)
}

type memoryStore struct {
	mu    sync.Mutex // guards the maps
	blobs map[digest.Digest][]byte
	repos map[string]*memoryRepo
}

type memoryRepo struct {
	manifests map[digest.Digest]string // media type
	tags      map[string]digest.Digest
}

func newMemoryStore() *memoryStore {
	return &memoryStore{blobs: make(map[digest.Digest][]byte), repos: make(map[string]*memoryRepo)}
}

type memoryBlob struct{ *bytes.Reader }

func (memoryBlob) Close() error { return nil }

func (s *memoryStore) putBlob(src io.Reader) (digest.Digest, error) {
	data, err := io.ReadAll(src)
	if err != nil {
		return "", fmt.Errorf("read blob: %w", err)
	}
	d := digest.FromBytes(data)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blobs[d] = data
	return d, nil
}

func (s *memoryStore) openBlob(d digest.Digest) (blob, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.blobs[d]
	if !ok {
		return nil, fmt.Errorf("open blob %s: %w", d, fs.ErrNotExist)
	}
	return memoryBlob{bytes.NewReader(data)}, nil
}

// repo returns the named repository and creates it if it is missing. s.mu is held.
func (s *memoryStore) repo(name string) *memoryRepo {
	r, ok := s.repos[name]
	if !ok {
		r = &memoryRepo{manifests: make(map[digest.Digest]string), tags: make(map[string]digest.Digest)}
		s.repos[name] = r
	}
	return r
}

func (s *memoryStore) putManifest(repo string, d digest.Digest, mediaType string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.repo(repo).manifests[d] = mediaType
	return nil
}

func (s *memoryStore) manifestType(repo string, d digest.Digest) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	mediaType, ok := s.repo(repo).manifests[d]
	if !ok {
		return "", fmt.Errorf("open manifest %s@%s: %w", repo, d, fs.ErrNotExist)
	}
	return mediaType, nil
}

func (s *memoryStore) deleteManifest(repo string, d digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.repo(repo)
	delete(r.manifests, d)
	for t, td := range r.tags {
		if td == d {
			delete(r.tags, t)
		}
	}
	return nil
}

func (s *memoryStore) putTag(repo, tag string, d digest.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.repo(repo).tags[tag] = d
	return nil
}

func (s *memoryStore) tag(repo, tag string) (digest.Digest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.repo(repo).tags[tag]
	if !ok {
		return "", fmt.Errorf("open tag %s:%s: %w", repo, tag, fs.ErrNotExist)
	}
	return d, nil
}

func (s *memoryStore) tags(repo string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.repos[repo]
	if !ok {
		return nil, fmt.Errorf("list tags of %s: %w", repo, fs.ErrNotExist)
	}
	names := make([]string, 0, len(r.tags))
	for t := range r.tags {
		names = append(names, t)
	}
	sort.Strings(names)
	return names, nil
}

// diskStore keeps the objects in the on-disk form of the package comment. Files appear by rename, so readers need no lock.
type diskStore struct{ dir string }

func (s diskStore) blobPath(d digest.Digest) string {
	return filepath.Join(s.dir, "blobs", string(d.Algorithm()), d.Encoded())
}

func (s diskStore) manifestPath(repo string, d digest.Digest) string {
	return filepath.Join(s.dir, "repositories", filepath.FromSlash(repo), "_manifests", d.Encoded())
}

func (s diskStore) tagPath(repo, tag string) string {
	return filepath.Join(s.dir, "repositories", filepath.FromSlash(repo), "_tags", tag)
}

func (s diskStore) putBlob(src io.Reader) (_ digest.Digest, err error) {
	dir := filepath.Join(s.dir, "blobs", "sha256")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	f, err := os.CreateTemp(dir, ".upload-*")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	hash := digest.SHA256.Digester()
	_, err = io.Copy(io.MultiWriter(f, hash.Hash()), src)
	if err = errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("write blob: %w", err)
	}
	d := hash.Digest()
	if err := os.Rename(f.Name(), s.blobPath(d)); err != nil {
		return "", err
	}
	return d, nil
}

func (s diskStore) openBlob(d digest.Digest) (blob, error) {
	return os.Open(s.blobPath(d))
}

func (s diskStore) putManifest(repo string, d digest.Digest, mediaType string) error {
	return writeFile(s.manifestPath(repo, d), mediaType)
}

func (s diskStore) manifestType(repo string, d digest.Digest) (string, error) {
	b, err := os.ReadFile(s.manifestPath(repo, d))
	return string(b), err
}

func (s diskStore) deleteManifest(repo string, d digest.Digest) error {
	names, err := s.tags(repo)
	if err != nil {
		return err
	}
	for _, t := range names {
		if td, err := s.tag(repo, t); err == nil && td == d {
			if err := os.Remove(s.tagPath(repo, t)); err != nil {
				return err
			}
		}
	}
	return os.Remove(s.manifestPath(repo, d))
}

func (s diskStore) putTag(repo, tag string, d digest.Digest) error {
	return writeFile(s.tagPath(repo, tag), d.String())
}

func (s diskStore) tag(repo, tag string) (digest.Digest, error) {
	b, err := os.ReadFile(s.tagPath(repo, tag))
	return digest.Digest(b), err
}

func (s diskStore) tags(repo string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(s.tagPath(repo, "x")))
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// writeFile replaces a file atomically and makes the directories above it.
func writeFile(path, content string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(path, []byte(content), atomicfile.Options{})
}
