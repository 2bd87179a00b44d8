# apply: client side and server side, with prune, conflicts, diff and edits of last-applied.

$ cat > cm.yaml <<E
> apiVersion: v1
> kind: ConfigMap
> metadata: {name: c, labels: {set: x}}
> data: {a: "1", b: "2"}
> E
$ kubectl diff -f cm.yaml | grep -E '^[+]  (a|b):'
+  a: "1"
+  b: "2"
$ kubectl apply -f cm.yaml
configmap/c created
$ kubectl apply -f cm.yaml
configmap/c unchanged
$ kubectl diff -f cm.yaml
$ kubectl patch cm c --type=merge -p '{"data":{"z":"9"}}'
configmap/c patched
$ sed -i 's/, b: "2"/, c: "3"/' cm.yaml; kubectl diff -f cm.yaml | grep -E '^[-+]  '
? 0
-  b: "2"
+  c: "3"
$ kubectl apply -f cm.yaml --dry-run=server
configmap/c configured (server dry run)
$ kubectl apply -f cm.yaml
configmap/c configured
$ kubectl get cm c -o jsonpath='{.data}'
{"a":"1","c":"3","z":"9"}
$ kubectl apply view-last-applied cm c -o json | grep -c '"c": "3"'
1
$ kubectl create cm plain
configmap/plain created
$ printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: plain}\ndata: {k: v}\n' | kubectl apply -f -
Warning: resource configmaps/plain is missing the kubectl.kubernetes.io/last-applied-configuration annotation which is required by kubectl apply. kubectl apply should only be used on resources created declaratively by either kubectl create --save-config or kubectl apply. The missing annotation will be patched automatically.
configmap/plain configured
$ mkdir set; for i in 1 2; do printf "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: p$i, labels: {prune: me}}\n" > set/$i.yaml; done; kubectl apply -f set -l prune=me --prune --prune-allowlist=core/v1/ConfigMap
configmap/p1 created
configmap/p2 created
$ rm set/2.yaml; kubectl apply -f set -l prune=me --prune --prune-allowlist=core/v1/ConfigMap
configmap/p1 unchanged
configmap/p2 pruned

# Server side: owners, conflicts, force.

$ kubectl apply --server-side -f - <<E
> apiVersion: apps/v1
> kind: Deployment
> metadata: {name: web}
> spec:
>   replicas: 0
>   selector: {matchLabels: {app: web}}
>   template:
>     metadata: {labels: {app: web}}
>     spec: {containers: [{name: c, image: "nginx:1"}]}
> E
deployment.apps/web serverside-applied
$ kubectl get deployment web --show-managed-fields -o jsonpath='{.metadata.managedFields[?(@.operation=="Apply")].manager}'
kubectl
$ cat > other.yaml <<E
> apiVersion: apps/v1
> kind: Deployment
> metadata: {name: web}
> spec:
>   template: {spec: {containers: [{name: c, image: "nginx:2"}]}}
> E
$ kubectl apply --server-side --field-manager=other -f other.yaml
? 1
error: Apply failed with 1 conflict: conflict with "kubectl": .spec.template.spec.containers[name="c"].image
Please review the fields above--they currently have other managers. Here
are the ways you can resolve this warning:
* If you intend to manage all of these fields, please re-run the apply
  command with the `--force-conflicts` flag.
* If you do not intend to manage all of the fields, please edit your
  manifest to remove references to the fields that should keep their
  current managers.
* You may co-own fields by updating your manifest to match the existing
  value; in this case, you'll become the manager if the other manager(s)
  stop managing the field (remove it from their configuration).
See https://kubernetes.io/docs/reference/using-api/server-side-apply/#conflicts
$ kubectl apply --server-side --field-manager=other --force-conflicts -f other.yaml
deployment.apps/web serverside-applied
$ kubectl get deployment web -o jsonpath='{.spec.template.spec.containers[0].image}'
nginx:2
$ kubectl apply --server-side --field-manager=other --force-conflicts -f - <<E
> {apiVersion: apps/v1, kind: Deployment, metadata: {name: web}}
> E
? 1
The Deployment "web" is invalid: spec.template.spec.containers[0].image: Required value
$ kubectl apply --server-side --dry-run=server -f other.yaml --field-manager=other
deployment.apps/web serverside-applied (server dry run)
$ kubectl apply --server-side --validate=strict -f - <<E
> {apiVersion: v1, kind: ConfigMap, metadata: {name: q}, dta: {a: "1"}}
> E
? 1
[..]dta[..]
$ kubectl diff --server-side -f other.yaml --force-conflicts --field-manager=other

# A client-side object goes over to server side without a conflict with itself.

$ kubectl apply --server-side -f cm.yaml
configmap/c serverside-applied
