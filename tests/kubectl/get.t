# What `kubectl get` and `kubectl describe` print, in every output format.

$ kubectl apply -f - <<E
> apiVersion: v1
> kind: ConfigMap
> metadata: {name: one, labels: {app: a, tier: front}}
> data: {key: "1"}
> ---
> apiVersion: v1
> kind: ConfigMap
> metadata: {name: two, labels: {app: b, tier: front}}
> data: {key: "2", other: "x"}
> E
configmap/one created
configmap/two created

$ kubectl get configmaps
NAME               DATA   AGE
kube-root-ca.crt   1      [..]
one                1      [..]
two                2      [..]
$ kubectl get cm one --no-headers
one   1     [..]
$ kubectl get cm -o wide -l app
NAME   DATA   AGE
one    1      [..]
two    2      [..]
$ kubectl get cm -l app -o name
configmap/one
configmap/two
$ kubectl get cm/one cm/two -o name
configmap/one
configmap/two
$ kubectl get cm -l app=a --show-labels
NAME   DATA   AGE   LABELS
one    1      [..]    app=a,tier=front
$ kubectl get cm -l tier=front -L app,tier
NAME   DATA   AGE   APP   TIER
one    1      [..]    a     front
two    2      [..]    b     front
$ kubectl get cm -l 'app in (a, c), tier!=back' -o name
configmap/one
$ kubectl get cm -l 'app notin (a)' -o name
configmap/kube-root-ca.crt
configmap/two
$ kubectl get cm -l '!app' -o name
configmap/kube-root-ca.crt
$ kubectl get cm -l 'app in'
? 1
[..]unable to parse requirement[..]
$ kubectl get cm --field-selector metadata.name=two -o name
configmap/two
$ kubectl get cm --field-selector metadata.name!=two,metadata.namespace=$NS -o name
configmap/kube-root-ca.crt
configmap/one
$ kubectl get cm --field-selector data.key=1
? 1
Error from server (BadRequest): Unable to find "/v1, Resource=configmaps" that match label selector "", field selector "data.key=1": "data.key" is not a known field selector: only "metadata.name", "metadata.namespace"
$ kubectl get cm one -o jsonpath='{.data.key} {.metadata.labels.app}'
1 a
$ kubectl get cm -l app -o jsonpath='{range .items[*]}{.metadata.name}={.data.key}{"\n"}{end}'
one=1
two=2
$ kubectl get cm -l app -o go-template='{{range .items}}{{.metadata.name}} {{end}}'
one two
$ kubectl get cm -l app -o custom-columns=NAME:.metadata.name,KEY:.data.key,NONE:.data.none
NAME   KEY   NONE
one    1     <none>
two    2     <none>
$ kubectl get cm -l app --sort-by='{.data.key}' -o name | tail -1
configmap/two
$ kubectl get cm -l app --sort-by=.metadata.creationTimestamp --no-headers | wc -l
2
$ kubectl get cm one -o yaml
apiVersion: v1
data:
  key: "1"
kind: ConfigMap
metadata:
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: |
      {"apiVersion":"v1","data":{"key":"1"},"kind":"ConfigMap","metadata":{"annotations":{},"labels":{"app":"a","tier":"front"},"name":"one","namespace":"[..]"}}
  creationTimestamp: "[..]"
  labels:
    app: a
    tier: front
  name: one
  namespace: [..]
  resourceVersion: "[..]"
  uid: [..]
$ kubectl get cm one -o json | head -6
{
    "apiVersion": "v1",
    "data": {
        "key": "1"
    },
    "kind": "ConfigMap",
$ kubectl get cm one --show-managed-fields -o jsonpath='{.metadata.managedFields[0].manager} {.metadata.managedFields[0].operation}'
kubectl-client-side-apply Update
$ kubectl get cm none
? 1
Error from server (NotFound): configmaps "none" not found
$ kubectl get cm none --ignore-not-found
$ kubectl get cm one none -o name
? 1
configmap/one
Error from server (NotFound): configmaps "none" not found
$ kubectl get wrong
? 1
error: the server doesn't have a resource type "wrong"
$ kubectl get secrets
No resources found in [..] namespace.
$ kubectl get all
No resources found in [..] namespace.
$ kubectl get --raw /api/v1/namespaces/$NS/configmaps/one | head -c 35
{"kind":"ConfigMap","apiVersion":"v
$ kubectl get --raw /none
? 1
Error from server (NotFound): the server could not find the requested resource
$ kubectl get cm --chunk-size=1 -o name
configmap/kube-root-ca.crt
configmap/one
configmap/two
$ kubectl get cm -A --field-selector metadata.name=one -o name
configmap/one
$ kubectl get ns kube-system --output=jsonpath='{.status.phase}'
Active
$ kubectl get configmaps.v1. one -o name
configmap/one
$ w=$(mktemp); kubectl get cm -l app=a -w -o name >$w & until [ -s $w ]; do sleep 0.1; done; kubectl label cm one extra=1 >/dev/null; until [ $(wc -l <$w) = 2 ]; do sleep 0.1; done; kill $!; cat $w; rm $w
configmap/one
configmap/one
$ timeout 2 kubectl get cm one --watch-only -o name; true
$ kubectl describe cm one
Name:         one
Namespace:    [..]
Labels:       app=a
              extra=1
              tier=front
Annotations:  <none>

Data
====
key:
----
1


BinaryData
====

Events:  <none>
$ kubectl describe ns $NS | head -4
Name:         [..]
Labels:       kubernetes.io/metadata.name=[..]
Annotations:  <none>
Status:       Active
$ kubectl describe cm none
? 1
Error from server (NotFound): configmaps "none" not found
$ kubectl describe node | grep -E '^(Name|Roles|Conditions|Capacity|Allocatable|System Info|Non-terminated Pods|Allocated resources|Events)'
Name:               [..]
Roles:              [..]
Conditions:
Capacity:
Allocatable:
System Info:
Non-terminated Pods:          ([..] in total)
Allocated resources:
Events:[..]
$ kubectl get nodes -o wide
NAME[..]STATUS   ROLES[..]AGE[..]VERSION[..]INTERNAL-IP[..]EXTERNAL-IP[..]OS-IMAGE[..]KERNEL-VERSION[..]CONTAINER-RUNTIME
[..]Ready [..]v1.36.0[..]
