package testimage

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// layerWriter writes the tar stream of one layer.
type layerWriter struct {
	tar     *tar.Writer
	scratch string          // directory for built programs
	root    string          // module root, for C sources
	dirs    map[string]bool // directories written so far
}

// packageFiles copies the files of one .deb into the layer.
func (w *layerWriter) packageFiles(ctx context.Context, deb string) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
	}
	copyErr := w.copyTar(out)
	// dpkg-deb expects a reader for the padding, too.
	_, drainErr := io.Copy(io.Discard, out)
	if err := errors.Join(copyErr, drainErr, cmd.Wait()); err != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
	}
	return nil
}

func (w *layerWriter) copyTar(r io.Reader) error {
	in := tar.NewReader(r)
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		header.Name = strings.TrimPrefix(path.Clean(header.Name), "/")
		if header.Name == "." {
			continue
		}
		if header.Typeflag == tar.TypeLink {
			header.Linkname = path.Clean(header.Linkname)
		}
		if err := w.entry(header, in); err != nil {
			return err
		}
	}
}

// entry writes one header and its content. It writes a directory only once.
func (w *layerWriter) entry(header *tar.Header, content io.Reader) error {
	if header.Typeflag == tar.TypeDir {
		if w.dirs[header.Name] {
			return nil
		}
		w.dirs[header.Name] = true
		header.Name += "/"
	}
	header.Uname, header.Gname = "", ""
	header.Format = tar.FormatUnknown
	if err := w.tar.WriteHeader(header); err != nil {
		return fmt.Errorf("write %s: %w", header.Name, err)
	}
	if header.Typeflag != tar.TypeReg {
		return nil
	}
	if _, err := io.Copy(w.tar, content); err != nil {
		return fmt.Errorf("write %s: %w", header.Name, err)
	}
	return nil
}

// file writes one File of a layer.
func (w *layerWriter) file(ctx context.Context, f File) error {
	header := &tar.Header{
		Name: strings.TrimPrefix(path.Clean(f.Path), "/"), Mode: f.Mode,
		Uid: f.UID, Gid: f.GID, ModTime: epoch(), Typeflag: tar.TypeReg,
	}
	switch {
	case f.Dir:
		header.Typeflag = tar.TypeDir
		header.Mode = defaultMode(f.Mode, 0o755)
		return w.entry(header, nil)
	case f.Symlink != "":
		header.Typeflag, header.Linkname, header.Mode = tar.TypeSymlink, f.Symlink, 0o777
		return w.entry(header, nil)
	case f.Hardlink != "":
		header.Typeflag, header.Linkname = tar.TypeLink, strings.TrimPrefix(f.Hardlink, "/")
		header.Mode = defaultMode(f.Mode, 0o755)
		return w.entry(header, nil)
	case f.C != "":
		header.Mode = defaultMode(f.Mode, 0o755)
		return w.program(ctx, f, header)
	case f.Host != "":
		header.Mode = defaultMode(f.Mode, 0o644)
		return w.copyFile(f.Host, header)
	}
	header.Mode, header.Size = defaultMode(f.Mode, 0o644), int64(len(f.Content))
	return w.entry(header, strings.NewReader(f.Content))
}

func defaultMode(mode, fallback int64) int64 {
	if mode == 0 {
		return fallback
	}
	return mode
}

// program compiles a C program of this repository and writes it.
func (w *layerWriter) program(ctx context.Context, f File, header *tar.Header) error {
	out := filepath.Join(w.scratch, "program")
	if _, err := run(ctx, "gcc", "-static", "-Os", "-s", "-o", out, filepath.Join(w.root, f.C)); err != nil {
		return err
	}
	return w.copyFile(out, header)
}

// copyFile writes a file of this machine with the header's name and mode.
func (w *layerWriter) copyFile(name string, header *tar.Header) error {
	content, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("copy file: %w", err)
	}
	defer content.Close()
	info, err := content.Stat()
	if err != nil {
		return fmt.Errorf("copy file: %w", err)
	}
	header.Size = info.Size()
	return w.entry(header, content)
}

// applets writes a hard link for every applet of the busybox in deb.
func (w *layerWriter) applets(ctx context.Context, deb string) error {
	dir := filepath.Join(w.scratch, "busybox")
	if _, err := run(ctx, "dpkg-deb", "--extract", deb, dir); err != nil {
		return err
	}
	list, err := run(ctx, filepath.Join(dir, "bin/busybox"), "--list-full")
	if err != nil {
		return err
	}
	for applet := range strings.FieldsSeq(list) {
		if applet == "bin/busybox" {
			continue
		}
		if err := w.parents(applet); err != nil {
			return err
		}
		link := File{Path: "/" + applet, Hardlink: "/bin/busybox"}
		if err := w.file(ctx, link); err != nil {
			return err
		}
	}
	return nil
}

// parents writes the parent directories of name that the layer does not have yet.
func (w *layerWriter) parents(name string) error {
	dir := path.Dir(name)
	if dir == "." || w.dirs[dir] {
		return nil
	}
	if err := w.parents(dir); err != nil {
		return err
	}
	return w.entry(&tar.Header{Name: dir, Mode: 0o755, ModTime: epoch(), Typeflag: tar.TypeDir}, nil)
}
