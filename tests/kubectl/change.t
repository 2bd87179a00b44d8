# patch, edit, replace, set, label, annotate.

$ kubectl create deployment web --image=nginx:1 --replicas=0
deployment.apps/web created
$ kubectl patch deployment web -p '{"spec":{"template":{"spec":{"containers":[{"name":"nginx","env":[{"name":"A","value":"1"}]}]}}}}'
deployment.apps/web patched
$ kubectl patch deployment web -p '{"spec":{"template":{"spec":{"containers":[{"name":"nginx","env":[{"name":"A","value":"1"}]}]}}}}'
deployment.apps/web patched (no change)
$ kubectl patch deployment web -p '{"spec":{"template":{"spec":{"containers":[{"name":"nginx","env":[{"name":"A","$patch":"delete"}]}]}}}}'
deployment.apps/web patched
$ kubectl get deployment web -o jsonpath='{.spec.template.spec.containers[0].image} {.spec.template.spec.containers[0].env}'
nginx:1
$ kubectl patch deployment web --type=json -p '[{"op":"test","path":"/spec/replicas","value":0},{"op":"replace","path":"/spec/minReadySeconds","value":1}]'
? 1
The request is invalid: [..]
$ kubectl patch deployment web --type=json -p '[{"op":"add","path":"/spec/minReadySeconds","value":1}]'
deployment.apps/web patched
$ kubectl patch deployment web --type=json -p '[{"op":"test","path":"/spec/replicas","value":7}]'
? 1
The request is invalid: [..]
$ kubectl patch deployment web --type=merge -p '{"spec":{"minReadySeconds":null}}'
deployment.apps/web patched
$ kubectl patch deployment web --subresource=scale --type=merge -p '{"spec":{"replicas":0}}'
scale.autoscaling/web patched (no change)
$ kubectl patch deployment web --subresource=status --type=merge -p '{"status":{"collisionCount":1}}'
deployment.apps/web patched
$ kubectl patch deployment web -p '{"spec":{"selector":{"matchLabels":{"app":"other"}}}}'
? 1
The Deployment "web" is invalid: 
...
$ kubectl patch deployment none -p '{}'
? 1
Error from server (NotFound): deployments.apps "none" not found
$ kubectl patch deployment web -p '{"spec":{"replicas":"x"}}'
? 1
[..]
$ kubectl set image deployment/web nginx=nginx:2
deployment.apps/web image updated
$ kubectl set image deployment/web none=x
? 1
error: unable to find container named "none"
$ kubectl set env deployment/web X=1 Y=2
deployment.apps/web env updated
$ kubectl set env deployment/web --list
# Deployment web, container nginx
X=1
Y=2
$ kubectl set env deployment/web X-
deployment.apps/web env updated
$ kubectl set resources deployment/web --limits=cpu=200m,memory=64Mi --requests=cpu=100m
deployment.apps/web resource requirements updated
$ kubectl set serviceaccount deployment/web default
deployment.apps/web serviceaccount updated
$ kubectl create service clusterip svc --tcp=80
service/svc created
$ kubectl set selector service/svc a=b
service/svc selector updated
$ kubectl create role r --verb=get --resource=pods
role.rbac.authorization.k8s.io/r created
$ kubectl create rolebinding rb --role=r --user=a
rolebinding.rbac.authorization.k8s.io/rb created
$ kubectl set subject rolebinding/rb --user=b
rolebinding.rbac.authorization.k8s.io/rb subjects updated
$ kubectl run p --image=nginx:1
pod/p created
$ kubectl set image pod/p p=nginx:2
pod/p image updated
$ kubectl patch pod p -p '{"spec":{"hostname":"other"}}'
? 1
The Pod "p" is invalid: spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,[..]
...
$ kubectl label deployment web a=1 b=2
deployment.apps/web labeled
$ kubectl label deployment web a=2
? 1
error: 'a' already has a value (1), and --overwrite is false
$ kubectl label deployment web a=2 b- --overwrite
deployment.apps/web modified
$ kubectl label deployment web bad/key/x=1
? 1
The Deployment "web" is invalid: metadata.labels: Invalid value: "bad/key/x": [..]
$ kubectl label deployment web a=2
deployment.apps/web not labeled
$ kubectl label deployment web --list | sort
a=2
app=web
$ kubectl annotate deployment web note='some text'
deployment.apps/web annotated
$ kubectl annotate deployment web note-
deployment.apps/web annotated
$ EDITOR='sed -i s/nginx:2/nginx:1/' kubectl edit deployment web
deployment.apps/web edited
$ EDITOR=true kubectl edit deployment web
Edit cancelled, no changes made.
$ EDITOR='sed -i s/replicas:.*/replicas:\ 0/' kubectl edit deployment web --subresource=scale 2>&1 | tail -1
Edit cancelled, no changes made.
$ kubectl create cm c --from-literal=a=1
configmap/c created
$ kubectl get cm c -o yaml | sed 's/a: "1"/a: "2"/' > c.yaml; kubectl replace -f c.yaml
configmap/c replaced
$ sed -i 's/resourceVersion: .*/resourceVersion: "1"/' c.yaml; kubectl replace -f c.yaml
? 1
Error from server (Conflict): error when replacing "c.yaml": Operation cannot be fulfilled on configmaps "c": the object has been modified; please apply your changes to the latest version and try again
$ kubectl replace --force -f c.yaml
configmap "c" deleted from [..] namespace
configmap/c replaced
$ sed -i 's/name: c$/name: none/' c.yaml; sed -i '/resourceVersion\|uid/d' c.yaml; kubectl replace -f c.yaml
? 1
Error from server (NotFound): error when replacing "c.yaml": configmaps "none" not found
$ kubectl create -f - <<E
> {apiVersion: v1, kind: ConfigMap, metadata: {name: fixed}, immutable: true, data: {a: "1"}}
> E
configmap/fixed created
$ kubectl patch cm fixed --type=merge -p '{"data":{"a":"2"}}'
? 1
The ConfigMap "fixed" is invalid: data: Forbidden: field is immutable when `immutable` is set
