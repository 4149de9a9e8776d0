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

	"github.com/micarun/mica/network/hostlocal"
)

// podInterface is the interface name in every pod.
const podInterface = "eth0"

// Add attaches a pod and returns its addresses and interfaces. If it fails, it removes everything
// again. If that fails too, the error says so and the record stays, so that Del or GC can finish.
//
// Errors: errdefs.ErrUnavailable without a usable network configuration, ErrAlreadyExists if the
// pod is attached, ErrInvalidArgument for an invalid pod, ErrPluginMissing,
// context.DeadlineExceeded after Options.Timeout, and *types.Error of the CNI library for an error
// that a plugin reported.
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

// attach removes the leftovers of an interrupted attempt, writes the record and runs ADD.
func (n *Network) attach(ctx context.Context, c *conf, rec record) (Result, error) {
	if err := n.clear(ctx, rec.PodID); err != nil {
		return Result{}, err
	}
	p := n.pluginsOf(c.list)
	if _, err := p.missing(c.list); err != nil {
		return Result{}, err
	}
	if c.source == "" {
		if err := n.opts.Default.masquerade(); err != nil {
			return Result{}, err
		}
	}
	rec.InProcess = p.inProcess
	if err := n.records.write(rec); err != nil {
		return Result{}, err
	}
	result, err := n.execAdd(ctx, p, c.list, rec)
	if err == nil {
		return result, nil
	}
	if undo := n.detach(context.WithoutCancel(ctx), rec); undo != nil {
		return Result{}, fmt.Errorf("%w; detach again: %w", err, undo)
	}
	return Result{}, err
}

func (n *Network) execAdd(ctx context.Context, p plugins, list *libcni.NetworkConfigList, rec record) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, n.opts.Timeout)
	defer cancel()
	got, err := p.cni.AddNetworkList(ctx, list, rec.runtimeConf())
	if err != nil {
		return Result{}, plainError(err)
	}
	return parseResult(got, rec.Interface)
}

// clear removes the leftovers of an interrupted attempt. A pod that is attached is
// errdefs.ErrAlreadyExists.
func (n *Network) clear(ctx context.Context, id string) error {
	old, err := n.records.read(id)
	if err == nil && n.attached(old) {
		return errdefs.ErrAlreadyExists
	}
	if err := n.forget(ctx, Pod{ID: id}); err != nil {
		return fmt.Errorf("remove earlier attempt: %w", err)
	}
	return nil
}

// attached reports whether the ADD of a record completed.
func (n *Network) attached(rec record) bool {
	list, err := rec.list()
	if err != nil || !isNamespace(rec.NetNS) {
		return false
	}
	result, err := n.cni.GetNetworkListCachedResult(list, rec.runtimeConf())
	return err == nil && result != nil
}

// Del detaches a pod with the configuration and arguments that are on record. Normally it uses only
// pod.ID. It succeeds if the pod is not attached or its network namespace is gone. If the pod's
// files are lost but its namespace exists, plugins run DEL for the configuration in use and the
// fields of pod.
//
// If the executable of a plugin is missing, Del runs the other plugins, releases host-local's
// leases and returns ErrPluginMissing. The record stays, so that a later Del or GC runs the plugin
// once it is installed again.
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

// forget detaches a pod by its record. If the record is missing or corrupt, it uses libcni's cache,
// and if that is empty, the fields of pod.
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
		klog.FromContext(ctx).Error(err, "Cannot read attachment record, detaching pod by the cached result", "podID", pod.ID)
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

// detachUnknown runs DEL with the configuration in use for a pod without any files. A DEL for a pod
// that was never added succeeds.
func (n *Network) detachUnknown(ctx context.Context, pod Pod) error {
	if !hasInterface(pod.NetNS, podInterface) {
		return nil // it was never attached
	}
	rec, err := n.reconstruct(pod)
	if errdefs.IsUnavailable(err) {
		return nil // without a configuration there is nothing to run DEL with
	}
	if err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Detaching pod by the configuration in use: its record is lost", "pod", pod.String())
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

// detach runs DEL for a record under its own deadline. It removes the record if every plugin
// succeeded.
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
	p := n.pluginsToDetach(list, rec)
	err = n.releaseRules(ctx, p, list, rec)
	present, missing := p.missing(list)
	leased := hostLocal(list)
	list.Plugins = present
	if del := p.cni.DelNetworkList(ctx, list, rec.runtimeConf()); del != nil {
		err = errors.Join(err, plainError(del))
	}
	if missing != nil {
		for _, l := range leased {
			err = errors.Join(err, l.Release(ctx, func(id string) bool { return id == rec.PodID }))
		}
	}
	switch {
	case err != nil && missing != nil:
		// A plugin that exists failed, so this must not be ErrPluginMissing.
		return fmt.Errorf("%w; %s", err, missing.Error())
	case err != nil:
		return err
	case missing != nil:
		return missing
	}
	return n.records.remove(rec.PodID)
}

// hostLocal returns the leases of the plugins in list that use host-local.
func hostLocal(list *libcni.NetworkConfigList) []hostlocal.Leases {
	var found []hostlocal.Leases
	for _, p := range list.Plugins {
		if p.Network.IPAM.Type != "host-local" {
			continue
		}
		var plugin struct {
			IPAM struct{ DataDir string }
		}
		if json.Unmarshal(p.Bytes, &plugin) != nil {
			continue // impossible: libcni has parsed it
		}
		found = append(found, hostlocal.Of(plugin.IPAM.DataDir, list.Name))
	}
	return found
}

// InProcess reports whether the daemon itself attached the pod, without executed plugins. It is
// false for a pod that is not attached. It is safe for concurrent use.
func (n *Network) InProcess(id string) bool {
	rec, err := n.records.read(id)
	return err == nil && rec.InProcess
}

// Check asks the plugins whether the pod's attachment is still as they made it. It uses only
// pod.ID. It succeeds without a check for configurations older than CNI 0.4.0, those that disable
// it, and attachments whose cached result is lost: there is nothing to compare with. A pod that is
// not attached is errdefs.ErrNotFound.
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
	if _, err := n.cached(rec); err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, n.opts.Timeout)
	defer cancel()
	err = n.pluginsBy(rec.InProcess).cni.CheckNetworkList(ctx, list, rec.runtimeConf())
	if errors.Is(err, libcni.ErrorCheckNotSupp) {
		return nil
	}
	return plainError(err)
}

// plainError strips libcni's wrapping from a plugin's error, which repeats what the error says.
func plainError(err error) error {
	var plugin *pluginError
	if errors.As(err, &plugin) {
		return plugin
	}
	return err
}

// isNamespace reports whether path is a pinned namespace, and not the plain file that remains of a
// pin after a reboot.
func isNamespace(path string) bool {
	const nsfsMagic = 0x6e736673 // linux/magic.h
	var st unix.Statfs_t
	return path != "" && unix.Statfs(path, &st) == nil && st.Type == nsfsMagic
}
