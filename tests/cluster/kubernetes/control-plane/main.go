// The programs of the control plane that cluster.sh starts; the name that this one is called by chooses. etcd and the API
// server are the real ones. The controller manager has six controllers only, because to compile all of them takes
// minutes.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	name := filepath.Base(os.Args[0])
	var command *cobra.Command
	switch name {
	case "etcd":
		etcdmain.Main(os.Args)
		return
	case "kube-apiserver":
		command = apiserver.NewAPIServerCommand()
	case "kube-controller-manager":
		command = newControllerManagerCommand()
	default:
		fmt.Fprintf(os.Stderr, "call me etcd, kube-apiserver or kube-controller-manager, not %s\n", name)
		os.Exit(2)
	}
	os.Exit(cli.Run(command))
}
