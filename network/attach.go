package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// podInterface is the interface of every pod.
const podInterface = "eth0"

// Add attaches a pod and returns what it got. After an error nothing of the
// attachment is left, unless the error says so; then the record of it is, and
// Del or GC take it away.
//
// Errors: errdefs.ErrUnavailable if there is no network, ErrAlreadyExists if the
// pod is attached, ErrInvalidArgument for a pod that cannot be, ErrPluginMissing,
// context.DeadlineExceeded after Options.Timeout, and a *types.Error of the CNI
// library for what a plugin reported.
func (n *Network) Add(ctx context.Context, pod Pod) (Result, error) {
	c := n.current()
	list, err := c.ready()
	if err != nil {
		return Result{}, err
	}
	rec, err := pod.record(c)
	if err != nil {
		return Result{}, fmt.Errorf("add network %s to %s: %w", list.Name, pod, err)
	}
	end, err := n.begin(ctx, pod.ID)
	if err != nil {
		return Result{}, fmt.Errorf("add network %s to %s: %w", list.Name, pod, err)
	}
	defer end()
	n.claim(pod.ID, true)
	result, err := n.attach(ctx, c, rec)
	if err != nil {
		return Result{}, fmt.Errorf("add network %s to %s: %w", list.Name, pod, err)
	}
	if rec.CapabilityArgs[portMappings] != nil && !hasCapability(list, portMappings) && n.once("no port mappings in "+list.Name) {
		klog.FromContext(ctx).Info("Host ports are ignored: no plugin of the network has the capability portMappings", "network", list.Name, "pod", pod.String())
	}
	return result, nil
}

// attach records and makes an attachment, taking away what an earlier attempt
// that was interrupted has left.
func (n *Network) attach(ctx context.Context, c *conf, rec record) (Result, error) {
	if err := n.clear(ctx, rec.PodID); err != nil {
		return Result{}, err
	}
	if _, err := n.missing(c.list); err != nil {
		return Result{}, err
	}
	if c.source == "" {
		if err := n.opts.Default.masquerade(); err != nil {
			return Result{}, err
		}
	}
	if err := n.records.write(rec); err != nil {
		return Result{}, err
	}
	result, err := n.execAdd(ctx, c.list, rec)
	if err == nil {
		return result, nil
	}
	if undo := n.detach(context.WithoutCancel(ctx), rec); undo != nil {
		return Result{}, fmt.Errorf("%w; taking it away again: %w", err, undo)
	}
	return Result{}, err
}

func (n *Network) execAdd(ctx context.Context, list *libcni.NetworkConfigList, rec record) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, n.opts.Timeout)
	defer cancel()
	got, err := n.cni.AddNetworkList(ctx, list, rec.runtimeConf())
	if err != nil {
		return Result{}, plainError(err)
	}
	return parseResult(got, rec.Interface)
}

// clear makes sure that a pod is not attached.
func (n *Network) clear(ctx context.Context, id string) error {
	old, err := n.records.read(id)
	if err == nil && n.attached(old) {
		return errdefs.ErrAlreadyExists
	}
	if err := n.forget(ctx, Pod{ID: id}); err != nil {
		return fmt.Errorf("take away an earlier attempt: %w", err)
	}
	return nil
}

// attached reports whether the attachment of a record was made to its end.
func (n *Network) attached(rec record) bool {
	list, err := rec.list()
	if err != nil || !isNamespace(rec.NetNS) {
		return false
	}
	result, err := n.cni.GetNetworkListCachedResult(list, rec.runtimeConf())
	return err == nil && result != nil
}

// Del detaches a pod, by the configuration and arguments that it was attached
// with; only pod.ID is looked at. A pod that is not attached is success, as is a
// network namespace that is gone. Of a pod whose attachment is lost from the disk,
// but not its namespace, plugins are asked to delete what pod and the configuration
// in use describe.
//
// If the executable of a plugin is missing, the other plugins run, leases of
// host-local are given back, and the error holds ErrPluginMissing; the record
// stays, and a later Del or GC runs the plugin if it is there again.
func (n *Network) Del(ctx context.Context, pod Pod) error {
	end, err := n.begin(ctx, pod.ID)
	if err != nil {
		return fmt.Errorf("delete network of %s: %w", pod, err)
	}
	defer end()
	n.claim(pod.ID, false)
	if err := n.forget(ctx, pod); err != nil {
		return fmt.Errorf("delete network of %s: %w", pod, err)
	}
	return nil
}

// forget detaches a pod by its record, or, if that is lost or torn, by what
// libcni keeps of it, or by the pod itself.
func (n *Network) forget(ctx context.Context, pod Pod) error {
	rec, err := n.records.read(pod.ID)
	if err == nil {
		return n.detach(ctx, rec)
	}
	cached, cacheErr := n.cni.GetCachedAttachments(pod.ID)
	if cacheErr != nil {
		return fmt.Errorf("read cached attachments: %w", cacheErr)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		klog.FromContext(ctx).Error(err, "Attachment record unusable, detaching by the cached result", "podID", pod.ID)
	}
	for _, a := range cached {
		if err := n.detach(ctx, record{
			PodID: pod.ID, Interface: a.IfName, NetNS: a.NetNS, Config: a.Config, Args: a.CniArgs, CapabilityArgs: a.CapabilityArgs,
		}); err != nil {
			return err
		}
	}
	if len(cached) == 0 && isNamespace(pod.NetNS) {
		if err := n.detachUnknown(ctx, pod); err != nil {
			return err
		}
	}
	return n.records.remove(pod.ID)
}

// detachUnknown runs DEL with the configuration in use for a pod of which no file is
// left. A DEL of what was never added is success.
func (n *Network) detachUnknown(ctx context.Context, pod Pod) error {
	if !hasInterface(pod.NetNS, podInterface) {
		return nil // it was never attached
	}
	rec, err := n.reconstruct(pod)
	if errdefs.IsUnavailable(err) {
		return nil // no network is configured: nothing is known at all
	}
	if err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Detaching by the configuration in use: no record is left", "pod", pod.String())
	return n.detach(ctx, rec)
}

func hasInterface(netNS, name string) bool {
	handle, err := openHandle(netNS)
	if err != nil {
		return false
	}
	defer handle.Close()
	_, err = handle.LinkByName(name)
	return err == nil
}

// detach runs DEL for a record with a deadline of its own, and removes the
// record if every plugin succeeded.
func (n *Network) detach(ctx context.Context, rec record) error {
	ctx, cancel := context.WithTimeout(ctx, n.opts.Timeout)
	defer cancel()
	list, err := rec.list()
	if err != nil {
		return err
	}
	if err := n.endInterrupted(ctx, rec); err != nil {
		return err
	}
	present, missing := n.missing(list)
	leased := hostLocal(list)
	list.Plugins = present
	err = n.cni.DelNetworkList(ctx, list, rec.runtimeConf())
	if err != nil {
		err = plainError(err)
	}
	if missing != nil {
		for _, l := range leased {
			err = errors.Join(err, l.release(ctx, func(id string) bool { return id == rec.PodID }))
		}
	}
	switch {
	case err != nil && missing != nil:
		// Not all that can be done is done, so this is no ErrPluginMissing.
		return fmt.Errorf("%w; %v", err, missing)
	case err != nil:
		return err
	case missing != nil:
		return missing
	}
	return n.records.remove(rec.PodID)
}

// hostLocal returns where the networks of list keep leases, if it is in files
// of host-local.
func hostLocal(list *libcni.NetworkConfigList) []leases {
	var found []leases
	for _, p := range list.Plugins {
		if p.Network.IPAM.Type != "host-local" {
			continue
		}
		var plugin struct {
			IPAM struct{ DataDir string }
		}
		if json.Unmarshal(p.Bytes, &plugin) != nil {
			continue // libcni has parsed it: cannot be
		}
		d := DefaultNetwork{Name: list.Name, DataDir: plugin.IPAM.DataDir}
		if d.DataDir == "" {
			d.DataDir = "/var/lib/cni/networks" // host-local's default
		}
		found = append(found, d.leases())
	}
	return found
}

// Check asks the plugins whether the attachment of a pod still is as they made
// it; only pod.ID is looked at. Configurations older than CNI 0.4.0, and those
// that disable it, have no check and succeed. A pod that is not attached is
// errdefs.ErrNotFound.
func (n *Network) Check(ctx context.Context, pod Pod) error {
	end, err := n.begin(ctx, pod.ID)
	if err != nil {
		return fmt.Errorf("check network of %s: %w", pod, err)
	}
	defer end()
	if err := n.check(ctx, pod.ID); err != nil {
		return fmt.Errorf("check network of %s: %w", pod, err)
	}
	return nil
}

func (n *Network) check(ctx context.Context, id string) error {
	rec, err := n.records.read(id)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("not attached: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return err
	}
	list, err := rec.list()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, n.opts.Timeout)
	defer cancel()
	err = n.cni.CheckNetworkList(ctx, list, rec.runtimeConf())
	if errors.Is(err, libcni.ErrorCheckNotSupp) {
		return nil
	}
	return plainError(err)
}

// plainError drops what libcni says around the error of a plugin, which the
// error says itself.
func plainError(err error) error {
	var plugin *pluginError
	if errors.As(err, &plugin) {
		return plugin
	}
	return err
}

// isNamespace reports whether path is a pinned namespace, and not the plain file
// that a reboot leaves of one.
func isNamespace(path string) bool {
	const nsfsMagic = 0x6e736673 // linux/magic.h
	var st unix.Statfs_t
	return path != "" && unix.Statfs(path, &st) == nil && st.Type == nsfsMagic
}
