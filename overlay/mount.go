package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/micarun/mica/internal/failpoint"
	"github.com/micarun/mica/internal/mounts"
	"github.com/micarun/mica/internal/osthread"
)

// Limits of the kernel's two mount APIs.
const (
	maxFSConfig = 255  // bytes of one fsconfig string
	maxOptions  = 4095 // bytes of the options of mount(2): one page
)

// MountArgs are the arguments of Mount.
type MountArgs struct {
	ID       string
	Volatile bool   // omit all syncs of the upper directory (Linux 5.10); a power failure loses it
	Label    string // SELinux context of every file, "" for none
	ReadOnly bool   // without an upper directory
	// Owners, if not nil, are the mappings of a user namespace: the files are shown and stored with
	// mapped owners (Linux 5.19). If the kernel or the file system cannot do that, Mount copies the
	// whole image into the layer.
	Owners *Owners
}

// Mount mounts a writable layer and returns the path. If the layer is mounted already, the mount
// keeps the arguments of its first Mount. Mount returns errdefs.ErrNotFound if the layer does not
// exist, and errdefs.ErrInvalidArgument for Owners without an ID for root. It returns
// errdefs.ErrOutOfRange if an old kernel cannot mount so many layers.
func (s *Store) Mount(ctx context.Context, a MountArgs) (path string, err error) {
	w, err := s.writable(a.ID)
	if err != nil {
		return "", fmt.Errorf("mount: %w", err)
	}
	defer w.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("mount writable layer %s: %w", a.ID, err)
	}
	merged := filepath.Join(s.paths.dir(w.MountID), mergedName)
	mounted, err := mounts.IsMountPoint(merged)
	if err == nil && !mounted {
		err = s.mount(ctx, w.MountID, a)
	}
	if err != nil {
		return "", fmt.Errorf("mount writable layer %s: %w", a.ID, err)
	}
	return merged, nil
}

func (s *Store) mount(ctx context.Context, id string, a MountArgs) error {
	if err := os.Mkdir(filepath.Join(s.paths.dir(id), mergedName), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	// After a volatile mount without an unmount, overlayfs refuses the next mount until this
	// directory is removed (overlayfs.rst, "Volatile mount").
	if err := os.RemoveAll(filepath.Join(s.paths.dir(id), workName, "work", "incompat")); err != nil {
		return err
	}
	if err := failpoint.Hit("overlay.mount.prepared"); err != nil {
		return err
	}
	m, err := s.overlayMount(id, a.ReadOnly)
	if err != nil {
		return err
	}
	m.target = filepath.Join(id, mergedName)
	m.volatile, m.label = a.Volatile && !a.ReadOnly, a.Label
	if a.Owners != nil {
		err = s.mountOwned(ctx, m, a.Owners)
	} else {
		err = s.mountOverlay(m)
	}
	if err != nil {
		return err
	}
	return failpoint.Hit("overlay.mount.mounted")
}

// Unmount undoes Mount. It is no error if the layer is not mounted or does not exist.
func (s *Store) Unmount(_ context.Context, id string) error {
	w, err := s.writable(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	defer w.mu.Unlock()
	merged := filepath.Join(s.paths.dir(w.MountID), mergedName)
	if err := mounts.Unmount(merged); err != nil {
		return fmt.Errorf("unmount writable layer %s: %w", id, err)
	}
	if err := unix.Rmdir(merged); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount writable layer %s: remove mount point: %w", id, err)
	}
	return nil
}

// MountView mounts a read-only view of a layer and its ancestors at the directory target. If userNS
// is the file of a user namespace, it maps the owners of all files (Linux 5.19). The caller unmounts
// target, and must Hold the layer until then. MountView returns errdefs.ErrNotFound if the layer
// does not exist, errdefs.ErrOutOfRange if an old kernel cannot mount so many layers, and
// errdefs.ErrNotImplemented if the kernel or the file system cannot map owners.
func (s *Store) MountView(chain digest.Digest, target, userNS string) error {
	l, err := s.Layer(chain)
	if err != nil {
		return fmt.Errorf("mount view: %w", err)
	}
	if target, err = filepath.Abs(target); err != nil {
		return fmt.Errorf("mount view: %w", err)
	}
	if err := s.mountView(l.CacheID, target, userNS); err != nil {
		return fmt.Errorf("mount view of layer %s at %s: %w", chain, target, err)
	}
	// The view is visible on the host, where setuid files and device nodes of an image must have no
	// effect. Bind mounts of the view inherit these flags.
	const flags = unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV
	if err := unix.Mount("", target, "", flags, ""); err != nil {
		err = errors.Join(err, unix.Unmount(target, unix.UMOUNT_NOFOLLOW))
		return fmt.Errorf("restrict view of layer %s at %s: %w", chain, target, err)
	}
	return nil
}

func (s *Store) mountView(cacheID, target, userNS string) error {
	m, err := s.overlayMount(cacheID, true)
	if err != nil {
		return err
	}
	m.target = target
	single := len(m.lowers) == 1 // overlayfs wants two
	switch {
	case single && userNS == "":
		return bind(s.paths.diff(cacheID), target)
	case single:
		ns, err := os.Open(userNS)
		if err != nil {
			return fmt.Errorf("open user namespace: %w", err)
		}
		defer func() { _ = ns.Close() }()
		return bindMapped(mappedBind{from: s.paths.diff(cacheID), to: target, ns: ns, readOnly: true})
	case userNS != "":
		return s.mountMapped(m, userNS)
	}
	return s.mountOverlay(m)
}

func bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return nil
}

// overlayMount is one mount. Paths are relative to the directory overlay2, unless they are
// absolute.
type overlayMount struct {
	lowers      []string // nearest first
	upper, work string   // "" for a read-only mount
	target      string
	label       string
	volatile    bool
	here        bool // overlay2 is the calling thread's working directory
}

// overlayMount reads the lower directories of a directory of overlay2.
func (s *Store) overlayMount(id string, readOnly bool) (overlayMount, error) {
	var m overlayMount
	lower, err := readString(filepath.Join(s.paths.dir(id), lowerName))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return m, err
	}
	if readOnly {
		link, err := readString(filepath.Join(s.paths.dir(id), linkName))
		if err != nil {
			return m, err
		}
		m.lowers = append(m.lowers, filepath.Join(linksName, link))
	} else {
		m.upper, m.work = filepath.Join(id, diffName), filepath.Join(id, workName)
	}
	if lower != "" {
		m.lowers = append(m.lowers, strings.Split(lower, ":")...)
	}
	if len(m.lowers) == 0 {
		return m, fmt.Errorf("directory overlay2/%s has no lower layer: %w", id, errdefs.ErrFailedPrecondition)
	}
	return m, nil
}

// features are mount options. With them, an upper directory holds a layer's whole difference in a
// form that every tool understands.
func (m *overlayMount) features() [][2]string {
	f := [][2]string{{"index", "off"}}
	if m.upper != "" {
		f = append(f, [2]string{"redirect_dir", "off"}, [2]string{"metacopy", "off"})
	}
	if m.label != "" {
		f = append(f, [2]string{"context", m.label})
	}
	return f
}

// mountOverlay uses the new mount API with one lowerdir+ for each layer (Linux 6.8), or mount(2) on
// older kernels.
func (s *Store) mountOverlay(m overlayMount) error {
	if !s.oldAPI.Load() {
		err := s.mountNew(m)
		if !errors.Is(err, errNoLowerPlus) {
			return err
		}
		s.oldAPI.Store(true)
	}
	return s.mountOld(m)
}

var errNoLowerPlus = errors.New("the kernel does not know lowerdir+")

func (s *Store) mountNew(m overlayMount) error {
	// Absolute paths are more useful in /proc/mounts, but are used only if they fit.
	abs := m.absolute(s.paths.overlay())
	for _, p := range append([]string{abs.upper, abs.work}, abs.lowers...) {
		if len(p) > maxFSConfig {
			return s.inOverlay(m, m.mountNew)
		}
	}
	return abs.mountNew()
}

func (m overlayMount) absolute(dir string) overlayMount {
	join := func(p string) string {
		if p == "" || filepath.IsAbs(p) {
			return p
		}
		return filepath.Join(dir, p)
	}
	lowers := make([]string, len(m.lowers))
	for i, l := range m.lowers {
		lowers[i] = join(l)
	}
	m.lowers, m.upper, m.work, m.target = lowers, join(m.upper), join(m.work), join(m.target)
	return m
}

func (m overlayMount) mountNew() error {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) { // old, or filtered by seccomp
		return errNoLowerPlus
	}
	if err != nil {
		return fmt.Errorf("open overlay: %w", err)
	}
	defer func() { _ = unix.Close(fs) }()
	if takesAnything(fs) {
		return errNoLowerPlus
	}
	for i, l := range m.lowers {
		err := unix.FsconfigSetString(fs, "lowerdir+", l)
		if i == 0 && errors.Is(err, unix.EINVAL) && !strings.Contains(kernelLog(fs), l) {
			return errNoLowerPlus
		}
		if err != nil {
			return explain(fs, "set lowerdir+="+l, err)
		}
	}
	if err := m.configure(fs); err != nil {
		return err
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return explain(fs, "create overlay", err)
	}
	attrs := 0
	if m.upper == "" {
		attrs = unix.MOUNT_ATTR_RDONLY
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return explain(fs, "mount overlay", err)
	}
	defer func() { _ = unix.Close(mount) }()
	return mounts.Attach(mount, m.target)
}

// takesAnything reports whether overlayfs accepts any option name. Before Linux 6.5, overlayfs only
// collects the options, and an error at the end does not name the wrong one.
func takesAnything(fs int) bool {
	if unix.FsconfigSetString(fs, "mica_no_such_option", "x") == nil {
		return true
	}
	_ = kernelLog(fs) // drop messages about the option: later ones are about the mount
	return false
}

func (m overlayMount) configure(fs int) error {
	options := [][2]string{{"source", "overlay"}}
	if m.upper != "" {
		options = append(options, [2]string{"upperdir", m.upper}, [2]string{"workdir", m.work})
	}
	for _, o := range append(options, m.features()...) {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return explain(fs, "set "+o[0]+"="+o[1], err)
		}
	}
	if !m.volatile {
		return nil
	}
	if err := unix.FsconfigSetFlag(fs, "volatile"); err != nil {
		return explain(fs, "set volatile", err)
	}
	return nil
}

// explain adds the kernel's message to an error.
func explain(fs int, what string, err error) error {
	if log := kernelLog(fs); log != "" {
		return fmt.Errorf("%s: %w (%s)", what, err, log)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// kernelLog reads the messages of an open file system context.
func kernelLog(fs int) string {
	var lines []string
	buf := make([]byte, 1024)
	for {
		n, err := unix.Read(fs, buf)
		if err != nil || n <= 0 {
			return strings.Join(lines, "; ")
		}
		lines = append(lines, strings.TrimSpace(string(buf[:n])))
	}
}

// mountOld mounts with mount(2), whose options must fit into one page. So it uses relative paths
// and the layers' short names, which is enough for about 130 layers.
func (s *Store) mountOld(m overlayMount) error {
	options := m.options()
	if len(options) > maxOptions {
		return fmt.Errorf("mount overlay: %d layers do not fit into the options of mount(2): %w", len(m.lowers), errdefs.ErrOutOfRange)
	}
	var flags uintptr
	if m.upper == "" {
		flags = unix.MS_RDONLY
	}
	return s.inOverlay(m, func() error {
		if err := unix.Mount("overlay", m.target, "overlay", flags, options); err != nil {
			return fmt.Errorf("mount overlay: %w (options %s)", err, options)
		}
		return nil
	})
}

func (m overlayMount) options() string {
	o := []string{"lowerdir=" + strings.Join(m.lowers, ":")}
	if m.upper != "" {
		o = append(o, "upperdir="+m.upper, "workdir="+m.work)
	}
	for _, f := range m.features() {
		if f[0] == "context" { // it may hold commas
			f[1] = `"` + f[1] + `"`
		}
		o = append(o, f[0]+"="+f[1])
	}
	if m.volatile {
		o = append(o, "volatile")
	}
	return strings.Join(o, ",")
}

// inOverlay runs f, which mounts m, in the directory overlay2.
func (s *Store) inOverlay(m overlayMount, f func() error) error {
	if m.here {
		return f()
	}
	dir := s.paths.overlay()
	return osthread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare working directory: %w", err)
		}
		if err := unix.Chdir(dir); err != nil {
			return &os.PathError{Op: "chdir", Path: dir, Err: err}
		}
		return f()
	})
}
