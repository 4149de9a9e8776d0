package nri

import (
	"maps"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podMessage returns the protocol's message for a pod.
func podMessage(p Pod) *api.PodSandbox {
	meta := p.Config.GetMetadata()
	return &api.PodSandbox{
		Id: p.ID, Name: meta.GetName(), Uid: meta.GetUid(), Namespace: meta.GetNamespace(),
		Labels: maps.Clone(p.Config.GetLabels()), Annotations: maps.Clone(p.Config.GetAnnotations()),
		RuntimeHandler: p.Handler, Ips: p.IPs,
		Linux: &api.LinuxPodSandbox{
			PodOverhead: fromCRI(p.Overhead), PodResources: fromCRI(p.Resources),
			CgroupParent: p.CgroupParent, Namespaces: api.FromOCILinuxNamespaces(p.Namespaces),
		},
	}
}

// containerMessage returns the protocol's message for a container with the given specification, in
// state created.
func containerMessage(c Container) *api.Container {
	msg := &api.Container{
		Id: c.ID, PodSandboxId: c.PodID, Name: c.Config.GetMetadata().GetName(),
		State:       api.ContainerState_CONTAINER_CREATED,
		Labels:      maps.Clone(c.Config.GetLabels()),
		Annotations: annotations(c),
		Mounts:      api.FromOCIMounts(c.Spec.Mounts),
		Hooks:       api.FromOCIHooks(c.Spec.Hooks),
		Linux:       linuxMessage(c),
		CreatedAt:   c.Created.UnixNano(),
		Image:       &api.Image{Name: c.Image.Name, Digest: c.Image.Digest, ConfigDigest: c.Image.ConfigDigest},
	}
	for _, d := range c.Config.GetCDIDevices() {
		msg.CDIDevices = append(msg.CDIDevices, &api.CDIDevice{Name: d.GetName()})
	}
	if proc := c.Spec.Process; proc != nil {
		msg.Args, msg.Env = proc.Args, proc.Env
		msg.User = &api.User{Uid: proc.User.UID, Gid: proc.User.GID, AdditionalGids: proc.User.AdditionalGids}
		for _, l := range proc.Rlimits {
			msg.Rlimits = append(msg.Rlimits, &api.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
		}
	}
	return msg
}

// existingContainer returns the message for a container that existed before the daemon started.
func existingContainer(c Container) *api.Container {
	msg := containerMessage(c)
	msg.Linux.SeccompPolicy = nil
	if !c.Started.IsZero() {
		msg.State = api.ContainerState_CONTAINER_RUNNING
		msg.StartedAt, msg.Pid = c.Started.UnixNano(), uint32(c.Pid)
	}
	return msg
}

// annotations returns the annotations of the container and of the specification, which has
// priority.
func annotations(c Container) map[string]string {
	all := map[string]string{}
	maps.Copy(all, c.Config.GetAnnotations())
	maps.Copy(all, c.Spec.Annotations)
	return all
}

func linuxMessage(c Container) *api.LinuxContainer {
	msg := &api.LinuxContainer{SeccompProfile: seccompProfile(c.Config.GetLinux().GetSecurityContext())}
	if proc := c.Spec.Process; proc != nil {
		msg.OomScoreAdj = api.Int(proc.OOMScoreAdj)
		msg.IoPriority = api.FromOCILinuxIOPriority(proc.IOPriority)
		msg.Scheduler = api.FromOCILinuxScheduler(proc.Scheduler)
	}
	linux := c.Spec.Linux
	if linux == nil {
		return msg
	}
	msg.Namespaces = api.FromOCILinuxNamespaces(linux.Namespaces)
	msg.Devices = api.FromOCILinuxDevices(linux.Devices)
	msg.Resources = api.FromOCILinuxResources(linux.Resources, nil)
	msg.CgroupsPath = linux.CgroupsPath
	if linux.Seccomp != nil {
		msg.SeccompPolicy = api.FromOCILinuxSeccomp(linux.Seccomp)
	}
	msg.Sysctl = maps.Clone(linux.Sysctl)
	msg.NetDevices = api.FromOCILinuxNetDevices(linux.NetDevices)
	msg.Rdt = rdtMessage(linux.IntelRdt)
	return msg
}

func rdtMessage(r *specs.LinuxIntelRdt) *api.LinuxRdt {
	if r == nil {
		return nil
	}
	return &api.LinuxRdt{
		ClosId: api.String(r.ClosID), Schemata: api.RepeatedString(r.Schemata), EnableMonitoring: api.Bool(r.EnableMonitoring),
	}
}

// seccompProfile returns the requested profile. Without one the container runs unconfined.
func seccompProfile(sc *runtimeapi.LinuxContainerSecurityContext) *api.SecurityProfile {
	asked := sc.GetSeccomp()
	switch {
	case asked == nil, sc.GetPrivileged(), asked.GetProfileType() == runtimeapi.SecurityProfile_Unconfined:
		return &api.SecurityProfile{ProfileType: api.SecurityProfile_UNCONFINED}
	case asked.GetProfileType() == runtimeapi.SecurityProfile_Localhost:
		return &api.SecurityProfile{ProfileType: api.SecurityProfile_LOCALHOST, LocalhostRef: asked.GetLocalhostRef()}
	}
	return &api.SecurityProfile{ProfileType: api.SecurityProfile_RUNTIME_DEFAULT}
}
