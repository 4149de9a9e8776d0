package testregistry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

const maxManifest = 16 << 20 // bytes of a pushed manifest

// route is a parsed path /v2/<name>/<kind>/<ref>.
type route struct{ name, kind, ref string }

func checkName(name string) error {
	if !regexp.MustCompile(`^[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*$`).MatchString(name) {
		return fmt.Errorf("repository name %q is not valid", name)
	}
	return nil
}

func checkTag(tag string) error {
	if !regexp.MustCompile(`^\w[\w.-]{0,127}$`).MatchString(tag) {
		return fmt.Errorf("tag %q is not valid", tag)
	}
	return nil
}

func parseRoute(path string) (route, bool) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		return route{}, false
	}
	for _, kind := range []string{"/blobs/uploads/", "/blobs/", "/manifests/", "/tags/"} {
		if i := strings.LastIndex(rest, kind); i > 0 {
			r := route{name: rest[:i], kind: strings.Trim(kind, "/"), ref: rest[i+len(kind):]}
			return r, checkName(r.name) == nil
		}
	}
	return route{}, false
}

// ServeHTTP implements http.Handler.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.record(req)
	if f := r.takeFault(req); f != nil {
		if f.Kind == Status {
			if f.RetryAfter != "" {
				w.Header().Set("Retry-After", f.RetryAfter)
			}
			writeError(w, f.Code, "FAULT", "programmed fault")
			return
		}
		if f.Kind == IgnoreRange {
			req.Header.Del("Range")
		}
		w = &faultWriter{ResponseWriter: w, req: req, fault: *f}
	}
	if req.URL.Path == "/token" {
		r.serveToken(w, req)
		return
	}
	if req.URL.Path == "/v2/" || req.URL.Path == "/v2" {
		if r.allowed(w, req, "") {
			w.WriteHeader(http.StatusOK)
		}
		return
	}
	rt, ok := parseRoute(req.URL.Path)
	if !ok {
		writeError(w, http.StatusNotFound, "NAME_UNKNOWN", "no such route")
		return
	}
	if r.allowed(w, req, rt.scope(req.Method)) {
		r.dispatch(w, req, rt)
	}
}

func (rt route) scope(method string) string {
	if method == http.MethodGet || method == http.MethodHead {
		return "repository:" + rt.name + ":pull"
	}
	return "repository:" + rt.name + ":pull,push"
}

func (r *Registry) record(req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, Request{
		Host: req.Host, Method: req.Method, Path: req.URL.Path, Query: req.URL.RawQuery,
		Range: req.Header.Get("Range"), Authorization: req.Header.Get("Authorization"), Header: req.Header.Clone(),
	})
}

func (r *Registry) dispatch(w http.ResponseWriter, req *http.Request, rt route) {
	read := req.Method == http.MethodGet || req.Method == http.MethodHead
	switch {
	case rt.kind == "blobs" && read:
		r.getBlob(w, req, rt)
	case rt.kind == "blobs/uploads":
		r.upload(w, req, rt)
	case rt.kind == "manifests" && read:
		r.getManifest(w, req, rt)
	case rt.kind == "manifests" && req.Method == http.MethodPut:
		r.pushManifest(w, req, rt)
	case rt.kind == "manifests" && req.Method == http.MethodDelete:
		r.deleteManifest(w, rt)
	case rt.kind == "tags" && read:
		r.listTags(w, rt)
	default:
		writeError(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "method not supported here")
	}
}

func (r *Registry) getBlob(w http.ResponseWriter, req *http.Request, rt route) {
	d, err := digest.Parse(rt.ref)
	if err != nil {
		writeError(w, http.StatusBadRequest, "DIGEST_INVALID", err.Error())
		return
	}
	b, err := r.store.openBlob(d)
	if err != nil {
		writeStoreError(w, err, "BLOB_UNKNOWN")
		return
	}
	defer func() { _ = b.Close() }()
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, req, "", time.Time{}, b)
}

func (r *Registry) resolve(rt route) (digest.Digest, error) {
	if d, err := digest.Parse(rt.ref); err == nil {
		return d, nil
	}
	if err := checkTag(rt.ref); err != nil {
		return "", fmt.Errorf("%w: %w", err, fs.ErrNotExist)
	}
	return r.store.tag(rt.name, rt.ref)
}

func (r *Registry) getManifest(w http.ResponseWriter, req *http.Request, rt route) {
	d, err := r.resolve(rt)
	if err != nil {
		writeStoreError(w, err, "MANIFEST_UNKNOWN")
		return
	}
	mediaType, err := r.store.manifestType(rt.name, d)
	if err != nil {
		writeStoreError(w, err, "MANIFEST_UNKNOWN")
		return
	}
	b, err := r.store.openBlob(d)
	if err != nil {
		writeStoreError(w, err, "MANIFEST_UNKNOWN")
		return
	}
	defer func() { _ = b.Close() }()
	data, err := io.ReadAll(b)
	if err != nil {
		writeStoreError(w, err, "MANIFEST_UNKNOWN")
		return
	}
	h := w.Header()
	h.Set("Docker-Content-Digest", d.String())
	h.Set("Content-Length", strconv.Itoa(len(data)))
	h["Content-Type"] = nil // no sniffing when the media type is unknown
	if mediaType != "" {
		h.Set("Content-Type", mediaType)
	}
	w.WriteHeader(http.StatusOK)
	if req.Method != http.MethodHead {
		_, _ = w.Write(data)
	}
}

func (r *Registry) pushManifest(w http.ResponseWriter, req *http.Request, rt route) {
	data, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxManifest))
	if err != nil {
		writeError(w, http.StatusRequestEntityTooLarge, "MANIFEST_INVALID", err.Error())
		return
	}
	want, err := digest.Parse(rt.ref)
	if err == nil && want != digest.FromBytes(data) {
		writeError(w, http.StatusBadRequest, "DIGEST_INVALID", "content does not match the digest")
		return
	}
	if err != nil && checkTag(rt.ref) != nil {
		writeError(w, http.StatusBadRequest, "TAG_INVALID", "tag is not valid")
		return
	}
	d, err := r.PutManifest(rt.name, rt.ref, req.Header.Get("Content-Type"), data)
	if err != nil {
		writeStoreError(w, err, "MANIFEST_INVALID")
		return
	}
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Location", "/v2/"+rt.name+"/manifests/"+d.String())
	w.WriteHeader(http.StatusCreated)
}

func (r *Registry) deleteManifest(w http.ResponseWriter, rt route) {
	d, err := r.resolve(rt)
	if err == nil {
		err = r.store.deleteManifest(rt.name, d)
	}
	if err != nil {
		writeStoreError(w, err, "MANIFEST_UNKNOWN")
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

func (r *Registry) listTags(w http.ResponseWriter, rt route) {
	tags, err := r.store.tags(rt.name)
	if err != nil {
		writeStoreError(w, err, "NAME_UNKNOWN")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"name": rt.name, "tags": tags})
}

// upload serves POST (start, monolithic, mount), PATCH (chunk) and PUT (finish).
func (r *Registry) upload(w http.ResponseWriter, req *http.Request, rt route) {
	query := req.URL.Query()
	switch req.Method {
	case http.MethodPost:
		if mount, err := digest.Parse(query.Get("mount")); err == nil && r.hasBlob(mount) {
			r.created(w, rt, mount)
			return
		}
		id := r.newUpload()
		if want := query.Get("digest"); want != "" {
			r.finishUpload(w, req, route{name: rt.name, ref: id})
			return
		}
		w.Header().Set("Location", "/v2/"+rt.name+"/blobs/uploads/"+id)
		w.WriteHeader(http.StatusAccepted)
	case http.MethodPatch:
		n, err := r.appendUpload(rt.ref, req.Body)
		if err != nil {
			writeStoreError(w, err, "BLOB_UPLOAD_UNKNOWN")
			return
		}
		w.Header().Set("Location", "/v2/"+rt.name+"/blobs/uploads/"+rt.ref)
		w.Header().Set("Range", fmt.Sprintf("0-%d", max(0, n-1)))
		w.WriteHeader(http.StatusAccepted)
	case http.MethodPut:
		r.finishUpload(w, req, rt)
	default:
		writeError(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "method not supported here")
	}
}

func (r *Registry) hasBlob(d digest.Digest) bool {
	b, err := r.store.openBlob(d)
	if err != nil {
		return false
	}
	_ = b.Close()
	return true
}

func (r *Registry) newUpload() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.serial++
	id := fmt.Sprintf("upload-%d", r.serial)
	r.uploads[id] = new(bytes.Buffer)
	return id
}

func (r *Registry) appendUpload(id string, body io.Reader) (int, error) {
	data, err := io.ReadAll(body)
	if err != nil {
		return 0, fmt.Errorf("read upload: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	buf, ok := r.uploads[id]
	if !ok {
		return 0, fmt.Errorf("continue upload %s: %w", id, fs.ErrNotExist)
	}
	buf.Write(data)
	return buf.Len(), nil
}

func (r *Registry) finishUpload(w http.ResponseWriter, req *http.Request, rt route) {
	want, err := digest.Parse(req.URL.Query().Get("digest"))
	if err != nil {
		writeError(w, http.StatusBadRequest, "DIGEST_INVALID", err.Error())
		return
	}
	if _, err := r.appendUpload(rt.ref, req.Body); err != nil {
		writeStoreError(w, err, "BLOB_UPLOAD_UNKNOWN")
		return
	}
	r.mu.Lock()
	data := r.uploads[rt.ref].Bytes()
	delete(r.uploads, rt.ref)
	r.mu.Unlock()
	if digest.FromBytes(data) != want {
		writeError(w, http.StatusBadRequest, "DIGEST_INVALID", "content does not match the digest")
		return
	}
	if _, err := r.PutBlob(data); err != nil {
		writeStoreError(w, err, "BLOB_UPLOAD_INVALID")
		return
	}
	r.created(w, rt, want)
}

func (r *Registry) created(w http.ResponseWriter, rt route, d digest.Digest) {
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Location", "/v2/"+rt.name+"/blobs/"+d.String())
	w.WriteHeader(http.StatusCreated)
}

func writeStoreError(w http.ResponseWriter, err error, code string) {
	if errors.Is(err, fs.ErrNotExist) {
		writeError(w, http.StatusNotFound, code, err.Error())
		return
	}
	writeError(w, http.StatusInternalServerError, "UNKNOWN", err.Error())
}

// writeError answers in the error form of the distribution specification.
func writeError(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}
