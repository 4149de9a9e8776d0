package cluster_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/micarun/mica/e2e/cluster"
)

// Volumes of every kind without separate storage have the right content in a container.
func TestVolumes(t *testing.T) {
	f := start(t)
	f.kubectl("create", "configmap", "settings", "--from-literal=color=blue", "--from-literal=size=big")
	f.kubectl("create", "secret", "generic", "password", "--from-literal=word=sesame")
	f.pod("main", `
	containers:
	- name: main
		image: `+cluster.Busybox+`
		command: [sleep, infinity]
		env:
		- {name: COLOR, valueFrom: {configMapKeyRef: {name: settings, key: color}}}
		- {name: WORD, valueFrom: {secretKeyRef: {name: password, key: word}}}
		- {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
		resources: {limits: {memory: 64Mi}}
		volumeMounts:
		- {name: settings, mountPath: /settings}
		- {name: settings, mountPath: /etc/size, subPath: size}
		- {name: password, mountPath: /password, readOnly: true}
		- {name: all, mountPath: /all}
		- {name: scratch, mountPath: /scratch}
		- {name: scratch, mountPath: /nested, subPathExpr: $(NODE)}
	securityContext: {runAsUser: 1000, fsGroup: 4321}
	volumes:
	- {name: settings, configMap: {name: settings}}
	- {name: password, secret: {secretName: password, defaultMode: 0440}}
	- {name: scratch, emptyDir: {}}
	- name: all
		projected:
			sources:
			- configMap: {name: settings, items: [{key: color, path: from/color}]}
			- secret: {name: password}
			- serviceAccountToken: {path: token, expirationSeconds: 3600}
			- downwardAPI:
					items:
					- {path: labels, fieldRef: {fieldPath: metadata.labels}}
					- {path: limit, resourceFieldRef: {containerName: main, resource: limits.memory}}
`)
	pod := f.awaitPod("main", ready)
	for command, want := range map[string]string{
		"cat /settings/color":            "blue",
		"cat /etc/size":                  "big",
		"cat /password/word":             "sesame",
		"stat -L -c %a /password/word":   "440",
		"cat /all/from/color /all/word":  "bluesesame",
		"cat /all/labels":                `app="main"`,
		"cat /all/limit":                 "67108864",
		"echo $COLOR $WORD $NODE":        "blue sesame " + pod.Spec.NodeName + "\n",
		"stat -c %g /scratch":            "4321\n",
		"touch /nested/x; ls /scratch":   pod.Spec.NodeName + "\n",
		"wc -w </all/token":              "1\n",
		"touch /password/x 2>&1 || true": "touch: /password/x: Read-only file system\n",
	} {
		if got := f.exec("main", command); got != want && strings.TrimSpace(got) != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
	f.kubectl("patch", "configmap", "settings", "--patch", `{"data": {"color": "red"}}`)
	f.await("the changed value", func(ctx context.Context) error {
		text, err := f.try(ctx, "exec", "main", "--", "cat", "/settings/color", "/all/from/color")
		if err == nil && text != "redred" {
			err = fmt.Errorf("the value is %q", text)
		}
		return err
	})
}

// Mounts made by a container propagate to the containers that request it, and only to those.
func TestMountPropagation(t *testing.T) {
	f := start(t)
	f.pod("main", `
	containers:
	- name: maker
		image: `+cluster.Busybox+`
		command: [sh, -c, "mkdir /v/m; mount -t tmpfs none /v/m; touch /v/m/made; touch /ready; exec sleep infinity"]
		readinessProbe: {exec: {command: [test, -e, /ready]}, periodSeconds: 1}
		securityContext: {privileged: true}
		lifecycle: {preStop: {exec: {command: [umount, /v/m, /v/later]}}}
		volumeMounts: [{name: v, mountPath: /v, mountPropagation: Bidirectional}]
	- name: taker
		image: `+cluster.Busybox+`
		command: [sleep, infinity]
		volumeMounts: [{name: v, mountPath: /v, mountPropagation: HostToContainer}]
	- name: loner
		image: `+cluster.Busybox+`
		command: [sleep, infinity]
		volumeMounts: [{name: v, mountPath: /v}]
	volumes: [{name: v, emptyDir: {}}]
`)
	f.awaitPod("main", ready)
	// The loner has the directory, and may have been started after the first mount. Only a later
	// mount shows whether mounts propagate to it.
	remount := "mkdir /v/later && mount -t tmpfs none /v/later && touch /v/later/made"
	f.kubectl("exec", "main", "-c", "maker", "--", "sh", "-c", remount)
	for container, want := range map[string]string{"maker": "made\n", "taker": "made\n", "loner": ""} {
		if got := f.kubectl("exec", "main", "-c", container, "--", "ls", "/v/later"); got != want {
			t.Errorf("%s sees %q, want %q", container, got, want)
		}
	}
}

// An image is mounted as a volume, as a whole or in part.
func TestImageVolume(t *testing.T) {
	f := start(t)
	f.pod("main", `
	containers:
	- name: main
		image: `+cluster.Busybox+`
		command: [sleep, infinity]
		volumeMounts:
		- {name: nginx, mountPath: /image}
		- {name: nginx, mountPath: /html, subPath: var/www/html}
	volumes:
	- {name: nginx, image: {reference: "`+cluster.Nginx+`", pullPolicy: IfNotPresent}}
`)
	f.awaitPod("main", ready)
	for _, file := range []string{"/image/var/www/html/index.html", "/html/index.html"} {
		if got := f.exec("main", "cat "+file); !strings.Contains(got, "Welcome to nginx") {
			t.Errorf("%s is %q", file, got)
		}
	}
	if got := f.exec("main", "touch /image/x 2>&1 || true"); !strings.Contains(got, "Read-only") {
		t.Errorf("writing prints %q", got)
	}
}
