package main

import "strings"

// smoke names, as go test wants it, the end-to-end tests that show together that a
// kind of host is served: what depends on cgroups, the OCI runtime, the kernel's
// security modules and systemd.
func smoke() string { return "^(" + strings.Join(smokeTests(), "|") + ")$" }

func smokeTests() []string {
	return []string{
		"TestPodLifeCycle", "TestExitCodes", "TestGraceThenKill", "TestStopSignalOfImage", "TestSharedProcessNamespace",
		"TestPodFiles", "TestSysctls", "TestExecSync", "TestExecStream", "TestTerminals", "TestAttach", "TestPortForward",
		"TestLogStreams", "TestReopenLosesNoLine", "TestNginxOnTheBridge", "TestHostNetwork",
		"TestResources", "TestOOMKilled", "TestStats", "TestStatusAndVersion",
		"TestSecurityContext", "TestPrivileged", "TestHostNamespaces", "TestMounts",
		"TestUserNamespace", "TestUserNamespaceVolumes", "TestUserNamespaceSurvivesRestart",
		"TestKilledDaemonLosesNothing", "TestKilledKeeper", "TestRestartKeepsEverything", "TestPluginsAdjustContainers", "TestCDIDevices",
	}
}
