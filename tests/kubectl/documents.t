# Discovery and documentation: explain, api-resources, api-versions, version, cluster-info, proxy-less raw reads.

$ kubectl explain pod.spec.containers.image
KIND:       Pod
VERSION:    v1

FIELD: image <string>


DESCRIPTION:
    Container image name. [..]
...
$ kubectl explain deployments.spec.strategy.type | head -8
GROUP:      apps
KIND:       Deployment
VERSION:    v1

FIELD: type <string>
ENUM:
    Recreate
    RollingUpdate
$ kubectl explain pods --recursive | grep -cE '^ +(containers|initContainers|volumes)	<\[\]'
4
$ kubectl explain cm.none
? 1
KIND:       ConfigMap
VERSION:    v1

error: field "none" does not exist
$ kubectl explain none
? 1
the server doesn't have a resource type "none"
$ for kind in $(kubectl api-resources --verbs=create,get --no-headers -o name | sed 's/[.].*//'); do kubectl explain $kind >/dev/null || echo "no documentation of $kind"; done
$ kubectl explain pod.spec --output=plaintext-openapiv2 | head -6
KIND:     Pod
VERSION:  v1

RESOURCE: spec <Object>

DESCRIPTION:
$ kubectl api-versions | grep -xE 'v1|apps/v1|batch/v1|networking.k8s.io/v1'
apps/v1
batch/v1
networking.k8s.io/v1
v1
$ kubectl api-resources --api-group=apps
NAME                  SHORTNAMES   APIVERSION   NAMESPACED   KIND
controllerrevisions                apps/v1      true         ControllerRevision
daemonsets            ds           apps/v1      true         DaemonSet
deployments           deploy       apps/v1      true         Deployment
replicasets           rs           apps/v1      true         ReplicaSet
statefulsets          sts          apps/v1      true         StatefulSet
$ kubectl api-resources --namespaced=false -o name | grep -xE 'nodes|namespaces|persistentvolumes'
namespaces
nodes
persistentvolumes
$ kubectl api-resources -o wide --api-group=policy
NAME                   SHORTNAMES   APIVERSION   NAMESPACED   KIND                  VERBS[..]CATEGORIES
poddisruptionbudgets   pdb          policy/v1    true         PodDisruptionBudget   create,delete,deletecollection,get,list,patch,update,watch[..]
$ kubectl version
Client Version: v1.36.[..]
Kustomize Version: v5[..]
Server Version: v1.36.0[..]
$ kubectl cluster-info | sed 's/\x1b\[[0-9;]*m//g' | head -1
Kubernetes control plane is running at https://[..]
$ kubectl cluster-info dump --namespaces=$NS --output-directory=dump | head -1
Cluster info dumped to dump
$ ls dump
[..]
nodes.json
$ kubectl get --raw /readyz
ok
$ kubectl get --raw '/livez?verbose' | tail -1
livez check passed
$ kubectl get --raw /version | grep -c gitVersion
1
$ kubectl get --raw /metrics | grep -c '^# TYPE apiserver_request_total counter'
1
$ kubectl get --raw /openapi/v3 | head -c 10
{"paths":{
$ kubectl config current-context | wc -l
1
$ mkdir base overlay; printf 'resources: [cm.yaml]\n' > base/kustomization.yaml; printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: k}\ndata: {a: "1"}\n' > base/cm.yaml; printf 'resources: [../base]\nnamePrefix: pre-\nlabels: [{pairs: {x: z}}]\nconfigMapGenerator: [{name: g, literals: [k=v]}]\n' > overlay/kustomization.yaml; kubectl kustomize overlay | grep name:
  name: pre-g-[..]
  name: pre-k
$ kubectl apply -k overlay
configmap/pre-g-[..] created
configmap/pre-k created
$ kubectl delete -k overlay
configmap "pre-g-[..]" deleted from [..] namespace
configmap "pre-k" deleted from [..] namespace
