package main

import "strings"

// smoke is a regular expression for go test: the end-to-end tests that together cover the features
// that depend on cgroups, the OCI runtime, the kernel's security modules and systemd.
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
